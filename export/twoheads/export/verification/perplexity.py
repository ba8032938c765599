"""How well logits predict the text that they were computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.verification.noise_floor import chunks
from twoheads.graphs.program.program import Program

__all__ = ["Perplexity", "perplexity", "predicted_tokens"]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The exponential of the mean negative log-likelihood of the next token, over the checked positions.

    Attributes:
        candidate: What ran, in words.
        original: Of the original as it is, in float32.
        bundle: Of the candidate.
        tokens: How many next tokens.
    """

    candidate: str
    original: float
    bundle: float
    tokens: int


def perplexity(
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64] | None = None,
) -> tuple[float, int]:
    """The perplexity of ``logits [p, vocabulary]``, and of how many next tokens it is.

    Args:
        logits: Of the positions.
        tokens: int64 ``[n]``, the text. The last one has no next.
        positions: int64 ``[p]``; all of them by default.

    Returns:
        Not a number where nothing follows on any position, infinity where it is beyond float64.
    """
    after = (np.arange(len(tokens)) if positions is None else positions) + 1
    total, count = 0.0, 0
    for part in chunks(logits):
        inside = after[part] < len(tokens)
        scores = logits[part][inside].astype(np.float64)
        targets = tokens[after[part][inside]]
        top = scores.max(-1, initial=-np.inf)
        sums = top + np.log(np.exp(scores - top[:, None]).sum(-1))
        total += float((sums - scores[np.arange(len(targets)), targets]).sum())
        count += len(targets)
    mean = total / count if count else math.nan
    return (math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan), count


def predicted_tokens(program: Program, given: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64] | None:
    """The tokens that a language model's logits predict; ``None`` for any other model.

    A language model has one argument, of token numbers, logits for each of them, and no attention that looks ahead.
    """
    arguments = [entry for entry in program.inputs if entry.source == "argument"]
    if program.logits is None or program.pooled_logits or len(arguments) != 1:
        return None
    (argument,) = arguments
    logits = program.value(program.logits)
    if argument.limit is None or argument.limit > logits.block_shape(1)[-1] or argument.value.axis != logits.axis:
        return None
    stages = program.attentions
    at = np.arange(2)
    if any(stage.mask.dense(at[:1], at[1:]).any() for stage in stages):
        return None
    return np.asarray(given[argument.value.name], np.int64).reshape(-1)
