"""How a GGUF file stretches its rotary positions, of which the library reads nothing.

Llama 3.1 and later divide every frequency by a number of its own, in a tensor that the library leaves out: a model
without it is another model, at any length. The numbers follow from four parameters (transformers' ``llama3``); those of
the released models are tried, and taken where they make the file's very numbers. Every other stretching is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.compiler.frontend.torch.weights.gguf_header import FOLDER, GgufFacts
from twoheads.graphs.errors import CompileError

__all__ = ["FACTORS", "LONG", "otherwise", "stretched"]

FACTORS = "rope_freqs.weight"
"""The tensor with a divisor for every frequency."""

LONG = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Of models with one set of divisors for short inputs and another for long ones."""

RELEASED = (8.0, 32.0, 16.0, 4.0, 2.0)
"""Largest divisors: of Llama 3.1, of 3.2, and others."""

LOW, HIGH, LENGTH = 1.0, 4.0, 8192
"""The same for all of them: which wave lengths are divided, as shares of the length that was trained before."""

ALIKE = 1e-5
"""Between the file's numbers and those of the parameters, relative: they were computed in float32."""


def stretched(path: Path, facts: GgufFacts, rotary: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of the file's model.

    Args:
        path: The file.
        facts: What its header says.
        rotary: The parameters that the library made of it.

    Raises:
        CompileError: The file stretches positions in a way that is not read here.
    """
    if (how := otherwise(facts)) is not None:
        problem = f"stretches rotary positions {how}, which transformers does not read from such a file"
        raise CompileError(str(path), problem, FOLDER)
    if FACTORS not in facts.tensors:
        return dict(rotary)
    tensor, count = facts.tensors[FACTORS], _count(facts, rotary)
    numbers = np.fromfile(path, np.float32, count, offset=facts.begin + tensor.offset)
    readable = tensor.kind == 0 and len(numbers) == count > 0
    if readable and (numbers == 1).all():
        return dict(rotary)
    for largest in RELEASED if readable else ():
        if np.allclose(numbers, _divisors(float(rotary["rope_theta"]), len(numbers), largest), rtol=ALIKE, atol=0):
            return {
                **rotary,
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": LENGTH,
            }
    problem = f"divides rotary frequencies by numbers ({FACTORS}) that are those of no released Llama"
    raise CompileError(str(path), problem, FOLDER)


def otherwise(facts: GgufFacts) -> str | None:
    """How the file stretches positions in another way than by one set of divisors; ``None`` where it does not."""
    if any(name in facts.tensors for name in LONG):
        return "by other divisors for long inputs than for short ones"
    architecture = facts.entries.get("general.architecture")
    kind, *factors = (
        facts.entries.get(f"{architecture}.rope.{name}") for name in ("scaling.type", "scaling.factor", "scale_linear")
    )
    if kind in (None, "none", "linear") and all(factor in (None, 1) for factor in factors):
        return None
    return f"by {kind or 'linear'!r}"


def _count(facts: GgufFacts, rotary: Mapping[str, Any]) -> int:
    """Frequencies: half of a head's rotated numbers; 0 where these are not one set for all layers."""
    architecture = facts.entries.get("general.architecture")
    width = facts.entries.get(f"{architecture}.rope.dimension_count")
    if not isinstance(width, int) or width < 2 or "rope_theta" not in rotary:
        return 0
    return width // 2


def _divisors(base: float, count: int, largest: float) -> npt.NDArray[np.float64]:
    """What ``llama3`` divides each of ``count`` frequencies by."""
    waves = 2 * np.pi * base ** (np.arange(count) / count) if count else np.empty(0)
    share = np.clip((LENGTH / waves - LOW) / (HIGH - LOW), 0, 1)
    return np.asarray(1 / ((1 - share) / largest + share), np.float64)
