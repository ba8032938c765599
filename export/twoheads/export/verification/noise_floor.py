"""How far two evaluations of the same numbers are apart, and how far they may be.

The yardstick of ``verify`` is the *noise floor* of the original: the largest difference between its evaluation with
torch's fused attention and the one with plain matrix products and a softmax. Both are right; what separates them is
rounding. Whatever computes the same model differently again can't be asked to be much closer. Where an output is so few
numbers that both may agree by chance, further evaluations count too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "CHUNK",
    "SMALLEST_RELATIVE",
    "Floor",
    "chunks",
    "largest_difference",
    "noise_floor",
    "pooled_floor",
    "widest",
]

SMALLEST_RELATIVE = 2e-7
"""The floor is never below this share of the largest magnitude: about three units in the last place of float32."""

CHUNK = 16 << 20
"""Numbers that are compared at a time, so that no second array of the size of the logits is needed."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise floor of one tensor, and the largest magnitude in it; ``finite`` of both evaluations."""

    value: float
    max_magnitude: float
    finite: bool


def noise_floor(fused: Array, plain: Array) -> Floor:
    """The floor of a tensor ``[rows, width]`` from two evaluations of the original."""
    difference, magnitude, finite = 0.0, 0.0, True
    for rows in chunks(fused):
        step, clean = largest_difference(fused[rows], plain[rows])
        difference, finite = max(difference, step), finite and clean
        magnitude = max(magnitude, _largest_magnitude(fused[rows]))
    return Floor(max(difference, SMALLEST_RELATIVE * magnitude), magnitude, finite)


def pooled_floor(own: Floor, hidden: Floor) -> Floor:
    """The floor of numbers computed from one row of hidden states, or from the mean of all.

    They may agree by chance; relative to their size they can't be more exact than what they come from.
    """
    inherited = hidden.value / hidden.max_magnitude * own.max_magnitude if hidden.max_magnitude else 0.0
    return Floor(max(own.value, inherited), own.max_magnitude, own.finite)


def widest(one: Floor, other: Floor) -> Floor:
    """The floor of a tensor that was evaluated more than twice."""
    return Floor(max(one.value, other.value), one.max_magnitude, one.finite and other.finite)


def chunks(array: Array) -> Iterator[slice]:
    """The rows of ``array [rows, width]`` in parts of about :data:`CHUNK` numbers."""
    rows = max(1, CHUNK // max(1, array.shape[-1]))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def largest_difference(one: Array, other: Array) -> tuple[float, bool]:
    """The largest difference where it is finite, and whether it is finite everywhere."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(one - other)
    largest = float(difference.max(initial=0.0))
    if np.isfinite(largest):
        return largest, True
    return float(difference.max(initial=0.0, where=np.isfinite(difference))), False


def _largest_magnitude(array: Array) -> float:
    largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
    return largest if np.isfinite(largest) else float(np.abs(array).max(initial=0.0, where=np.isfinite(array)))
