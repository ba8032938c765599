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

__all__ = ["ALLOWED", "SMALLEST_RELATIVE", "Comparator", "Comparison", "Floor", "noise_floor", "pooled_floor", "widest"]

ALLOWED = 4.0
"""A bundle passes when its error is at most this many noise floors."""

SMALLEST_RELATIVE = 2e-7
"""The floor is never below this share of the largest magnitude: about three units in the last place of float32."""

CHUNK = 16 << 20
"""Numbers that are compared at a time, so that no second array of the size of the logits is needed."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A tensor of the bundle's against the original's.

    Attributes:
        max_abs_error: Largest absolute difference, over the numbers that are finite on both sides.
        max_magnitude: Largest absolute value of the original.
        noise_floor: Largest difference between evaluations of the original, not below the smallest allowed.
        ratio: ``max_abs_error / noise_floor``.
        positions: Rows that were compared.
        finite: Whether every number is finite, on both sides.
        passed: Finite, and the ratio is at most :data:`ALLOWED`.
    """

    max_abs_error: float
    max_magnitude: float
    noise_floor: float
    ratio: float
    positions: int
    finite: bool
    passed: bool


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise floor of one tensor, and the largest magnitude in it; ``finite`` of both evaluations."""

    value: float
    max_magnitude: float
    finite: bool


def noise_floor(fused: Array, plain: Array) -> Floor:
    """The floor of a tensor ``[rows, width]`` from two evaluations of the original."""
    difference, magnitude, finite = 0.0, 0.0, True
    for rows in _chunks(fused):
        step, clean = _largest_difference(fused[rows], plain[rows])
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


class Comparator:
    """Compares rows with the original's as they come; usable as the sink of a run.

    Args:
        original: ``[rows, width]``.
        floor: Its noise floor.
        ranks: Whether to compare which entry of a row is the largest.
    """

    def __init__(self, original: Array, floor: Floor, *, ranks: bool = False) -> None:
        self._original = original
        self._floor = floor
        self._ranks = ranks
        self._error = 0.0
        self._finite = floor.finite
        self._agreeing = 0
        self._rows = 0

    def write(self, start_row: int, rows: npt.NDArray[np.float32]) -> None:
        """Takes ``rows [count, width]``, the bundle's rows from ``start_row`` on."""
        original = self._original[start_row : start_row + len(rows)]
        error, finite = _largest_difference(original, rows)
        self._error = max(self._error, error)
        self._finite = self._finite and finite
        self._rows += len(rows)
        if self._ranks:
            self._agreeing += int(np.count_nonzero(original.argmax(-1) == rows.argmax(-1)))

    @property
    def agreement(self) -> float:
        """The share of rows whose largest entry is the same one on both sides."""
        return self._agreeing / max(1, self._rows)

    def result(self) -> Comparison:
        """The verdict on all rows; rows that never came make it fail."""
        floor = self._floor
        ratio = self._error / floor.value if floor.value else (0.0 if self._error == 0 else ALLOWED * 1e6)
        complete = self._rows == len(self._original)
        return Comparison(
            max_abs_error=self._error,
            max_magnitude=floor.max_magnitude,
            noise_floor=floor.value,
            ratio=ratio,
            positions=self._rows,
            finite=self._finite,
            passed=self._finite and complete and ratio <= ALLOWED,
        )


def _chunks(array: Array) -> Iterator[slice]:
    rows = max(1, CHUNK // max(1, array.shape[-1]))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def _largest_difference(one: Array, other: Array) -> tuple[float, bool]:
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
