"""What a sequence gets where it shares: a beginning that another one left, and the calls of a batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError
from twoheads.runtime import LoadedBundle
from twoheads.runtime.generation.generated import Generated

__all__ = ["equal_beginnings", "equal_neighbours"]

NEW = 8
"""The most tokens that a batch computes for it."""


def equal_beginnings(loaded: LoadedBundle, sequence: Sequence[int], expected: npt.NDArray[np.float32]) -> bool | None:
    """Whether ``sequence`` gives the very logits ``expected`` cold, and behind a beginning that is kept.

    Returns:
        ``None`` where no beginning is kept: behind an encoder, or where no block becomes whole.
    """
    contexts = loaded.generation.contexts
    if loaded.generation.steps.source or len(sequence) <= loaded.program.block_size:
        return None
    former = contexts.cache
    contexts.keep_prefixes(sys.maxsize)
    try:
        equal = True
        for _ in ("cold", "warm"):
            with contexts.open() as context:
                equal &= bool(np.array_equal(context.append(sequence), expected))
        return equal
    finally:
        contexts.cache = former


def equal_neighbours(loaded: LoadedBundle, prompt: Sequence[int], new: int) -> bool | None:
    """Whether a batch gives a prompt the very tokens and probabilities that it gets alone, by steady steps.

    Args:
        loaded: The bundle.
        prompt: What is continued, beside the same tokens in the other order.
        new: Tokens at most.

    Returns:
        ``None`` where that is not promised: on other backends than ONNX Runtime's, of mixtures that are gathered by
        expert, behind an encoder, where the model's own settings are refused, or where there is no engine for it.
    """
    generation = loaded.generation
    promised = loaded.backend == "onnxruntime" and not generation.steps.layered and not generation.steps.source
    if not promised or generation.model.refused:
        return None
    options: dict[str, Any] = {"max_new_tokens": min(new, NEW), "ignore_eos": True, "do_sample": False}
    try:
        with loaded.open_batch(2) as batch:
            found = batch.submit(list(prompt), **options)
            batch.submit(list(prompt)[::-1], **options)
            for _ in batch:
                pass
    except BundleError:
        return None
    alone, made = loaded.generate(list(prompt), steady=True, **options), found.result()
    return isinstance(alone, Generated) and (made.tokens, made.logprobs) == (alone.tokens, alone.logprobs)
