"""A check: one output of a candidate beside that of a reference, and how far apart they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.verification.noise_floor import Floor, chunks, largest_difference
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION, Manifest

__all__ = ["ALLOWED", "ROUNDING", "WITHIN_FLOORS", "Bound", "Check", "Reference", "compare", "rounding_bound"]

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bound:
    """How far apart two sides may be: at most ``most``, in a unit that is a number of :class:`Check`."""

    most: float
    unit: str

    def __str__(self) -> str:
        return f"{self.most:g} noise floors" if self.unit == "ratio" else f"{self.most:.0%} of the values"


ALLOWED = 4.0
"""Noise floors that the error of a compilation may be."""

WHOLE_WEIGHTS = "int8"
"""The weights whose products may be of whole numbers, with a scale a row."""

WITHIN_FLOORS = Bound(ALLOWED, "ratio")

ROUNDING = Bound(0.05, "relative")
"""Rounded operands of products may change the hidden states (root mean squares) by that much. Operands that are rounded
to int8 in blocks of 32 are off by 0.3 %; what is ten times that is no rounding."""

ROUNDING_OF_ROWS = Bound(0.1, "relative")
"""The same with one scale for a whole row: SmolLM2's hidden states change by 5.2 %, behind 30 layers."""


def rounding_bound(manifest: Manifest) -> Bound:
    """How far rounded products of a bundle may be from those of float32 with the same weights."""
    whole = manifest.products != FULL_PRECISION and manifest.weight_dtype == WHOLE_WEIGHTS
    return ROUNDING_OF_ROWS if whole else ROUNDING


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Attributes:
        name: What is asked, e.g. ``compilation``.
        output: ``hidden``, ``logits`` or ``embedding``.
        candidate, reference: What is compared with what, in words.
        max_abs_error: Largest absolute difference, over the numbers that are finite on both sides.
        relative: Root mean square of the difference over that of the reference.
        max_magnitude: Largest absolute value of the reference.
        noise_floor: Largest difference between evaluations of the original, not below the smallest allowed.
        ratio: ``max_abs_error / noise_floor``.
        positions: Rows that were compared.
        top1_agreement: Of logits, the share of rows where both sides prefer the same token; else ``None``.
        cosine: Of embeddings, between both vectors; else ``None``.
        finite: Whether every number is finite, on both sides.
        rounding: Whether evaluations of the original differ by no more than rounding.
        bound: What the candidate must keep; ``None`` where the distance is only told.
        passed: All rows came, all numbers are finite, and the bound is kept; one in noise floors needs a floor.
    """

    name: str
    output: str
    candidate: str
    reference: str
    max_abs_error: float
    relative: float
    max_magnitude: float
    noise_floor: float
    ratio: float
    positions: int
    top1_agreement: float | None
    cosine: float | None
    finite: bool
    rounding: bool
    bound: Bound | None
    passed: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """What candidates are compared with.

    Attributes:
        name: What such a check asks.
        title: What it is, in words.
        rows: By output, ``[rows, width]``; only these outputs are compared.
        floors: Their noise floors.
        bound: Of every check with it.
    """

    name: str
    title: str
    rows: Mapping[str, Array]
    floors: Mapping[str, Floor]
    bound: Bound | None = None


def compare(candidate: str, output: str, rows: Array, reference: Reference) -> Check:
    """The check of ``rows [rows, width]``, the ``output`` of ``candidate``."""
    original, floor = reference.rows[output], reference.floors[output]
    complete = rows.shape == original.shape
    rows, original = (array[: min(len(rows), len(original))] for array in (rows, original))
    sums = _Sums.of(rows, original)
    finite = floor.finite and sums.finite
    ratio = sums.error / floor.value if floor.value else (0.0 if sums.error == 0 else ALLOWED * 1e6)
    numbers = {"ratio": ratio, "relative": sums.relative}
    kept = reference.bound is None or numbers[reference.bound.unit] <= reference.bound.most
    measured = reference.bound is None or reference.bound.unit != "ratio" or floor.rounding
    return Check(
        name=reference.name,
        output=output,
        candidate=candidate,
        reference=reference.title,
        max_abs_error=sums.error,
        relative=sums.relative,
        max_magnitude=floor.max_magnitude,
        noise_floor=floor.value,
        ratio=ratio,
        positions=len(rows),
        top1_agreement=sums.agreeing / max(1, len(rows)) if output == "logits" else None,
        cosine=_cosine(rows, original) if output == "embedding" else None,
        finite=finite,
        rounding=floor.rounding,
        bound=reference.bound,
        passed=complete and finite and kept and measured,
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a comparison adds up over all rows: squares of the differences and of the reference, rows that agree."""

    error: float
    finite: bool
    squares: float
    reference_squares: float
    agreeing: int

    @classmethod
    def of(cls, rows: Array, original: Array) -> _Sums:
        error, finite, squares, size, agreeing = 0.0, True, 0.0, 0.0, 0
        for part in chunks(original):
            one, other = rows[part], original[part]
            step, clean = largest_difference(other, one)
            error, finite = max(error, step), finite and clean
            if clean:
                squares += _square_sum(one - other)
                size += _square_sum(other)
            agreeing += int(np.count_nonzero(one.argmax(-1) == other.argmax(-1)))
        return cls(error, finite, squares, size, agreeing)

    @property
    def relative(self) -> float:
        """The difference's root mean square over the reference's; 0 where both are."""
        return math.sqrt(self.squares / self.reference_squares) if self.reference_squares else math.sqrt(self.squares)


def _square_sum(array: Array) -> float:
    return float(np.einsum("ij,ij->", array, array, dtype=np.float64))


def _cosine(one: Array, other: Array) -> float:
    left, right = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
