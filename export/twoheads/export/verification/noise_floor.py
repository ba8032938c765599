"""How far two evaluations of the same numbers are apart, and how far they may be.

The yardstick of ``verify`` is the *noise floor* of the original: the largest difference between its evaluation with
torch's fused attention and its own eager code. Both are right; what separates them is
rounding. Whatever computes the same model differently again can't be asked to be much closer.

Two evaluations tell little where nothing but attention separates them, and attention is a small part of a model, or is
the same code twice. A floor that is suspiciously low is measured again with every matrix product cut in two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Pooling

__all__ = [
    "CHUNK",
    "CUTS",
    "LARGEST_RELATIVE",
    "SMALLEST_RELATIVE",
    "Floor",
    "Floors",
    "chunks",
    "largest_difference",
    "noise_floor",
    "pooled",
    "pooled_floor",
    "widest",
]

SMALLEST_RELATIVE = 2e-7
"""The floor is never below this share of the largest magnitude: about three units in the last place of float32."""

LARGEST_RELATIVE = 1e-3
"""Evaluations of one model that differ by more than this share of the largest magnitude differ by more than rounding:
they are of two models, or the model decides by a hair (which expert, which keys). There is nothing to compare with."""

CUTS = (3, 5, 7)
"""Where the inner dimension of every product is cut for further evaluations: after a third of it..."""

FEW = 64
"""A pooled head's logits may agree by chance in two evaluations where they are fewer than that."""

SUSPECT = 2e-6
"""A floor below this share of the magnitude is as good as none: a sum of 64 float32 products may be off by as much."""

CHUNK = 16 << 20
"""Numbers that are compared at a time, so that no second array of the size of the logits is needed."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise floor of one tensor, and the largest magnitude in it; ``finite`` of both evaluations."""

    value: float
    max_magnitude: float
    finite: bool

    @property
    def rounding(self) -> bool:
        """Whether rounding may make it; a floor that is larger is a finding."""
        return self.value <= LARGEST_RELATIVE * self.max_magnitude


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
    # Truth values have no difference, and bytes wrap around.
    kind = one.dtype if one.dtype.kind == "f" else np.dtype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.subtract(one, other, dtype=kind))
    largest = float(difference.max(initial=0.0))
    if np.isfinite(largest):
        return largest, True
    return float(difference.max(initial=0.0, where=np.isfinite(difference))), False


def _largest_magnitude(array: Array) -> float:
    largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
    return largest if np.isfinite(largest) else float(np.abs(array).max(initial=0.0, where=np.isfinite(array)))


@dataclass(frozen=True, slots=True)
class Floors:
    """The results that count, and how far further evaluations are from them.

    Attributes:
        hidden: Last hidden states ``[n, width]``.
        logits: ``[p, classes]``, or ``None`` without a head.
        pooling: How an embedding is made of hidden states, or ``None``.
        pooled_logits: Whether the head reads one row, or the mean of all.
        hidden_floor, logits_floor, embedding_floor: So far; ``None`` where there is no such result.
    """

    hidden: Array
    logits: Array | None
    pooling: Pooling | None
    pooled_logits: bool
    hidden_floor: Floor
    logits_floor: Floor | None
    embedding_floor: Floor | None

    @classmethod
    def of(
        cls,
        one: tuple[Array, Array | None],
        other: tuple[Array, Array | None],
        pooling: Pooling | None,
        *,
        pooled_logits: bool,
    ) -> Floors:
        """The floors from two evaluations ``(hidden, logits)``."""
        (hidden, logits), (hidden2, logits2) = one, other
        embeddings = None if pooling is None else (pooled(hidden, pooling), pooled(hidden2, pooling))
        return cls(
            hidden=hidden,
            logits=logits,
            pooling=pooling,
            pooled_logits=pooled_logits,
            hidden_floor=noise_floor(hidden, hidden2),
            logits_floor=None if logits is None or logits2 is None else noise_floor(logits, logits2),
            embedding_floor=None if embeddings is None else noise_floor(*embeddings),
        )

    def with_evaluation(self, hidden: Array, logits: Array | None) -> Floors:
        """The floors with one more evaluation; the widest counts."""
        found = Floors.of((self.hidden, self.logits), (hidden, logits), self.pooling, pooled_logits=self.pooled_logits)
        return Floors(
            self.hidden,
            self.logits,
            self.pooling,
            self.pooled_logits,
            widest(self.hidden_floor, found.hidden_floor),
            _widest(self.logits_floor, found.logits_floor),
            _widest(self.embedding_floor, found.embedding_floor),
        )

    @property
    def suspect(self) -> bool:
        """Whether some floor is so low, or of so few numbers, that it may be luck."""
        found = (self.hidden_floor, *(floor for floor in (self.logits_floor,) if floor is not None))
        few = self.pooled_logits and self.logits is not None and self.logits.size < FEW
        return few or any(floor.value < SUSPECT * floor.max_magnitude for floor in found)

    @property
    def final_logits(self) -> Floor | None:
        """The floor of the logits; those of one row are not asked to be more exact than what they come from."""
        if self.logits_floor is None or not self.pooled_logits:
            return self.logits_floor
        return pooled_floor(self.logits_floor, self.hidden_floor)

    @property
    def final_embedding(self) -> Floor | None:
        """The floor of the embedding; it is not asked to be more exact than the hidden states."""
        return None if self.embedding_floor is None else pooled_floor(self.embedding_floor, self.hidden_floor)


def _widest(one: Floor | None, other: Floor | None) -> Floor | None:
    return None if one is None or other is None else widest(one, other)


def pooled(hidden: Array, pooling: Pooling) -> Array:
    """The embedding ``[1, width]`` as sentence-transformers makes it, in torch: nothing shared with the runtime."""
    import torch

    rows = torch.from_numpy(hidden).double()
    vector = {"mean": lambda: rows.mean(0), "cls": lambda: rows[0], "last": lambda: rows[-1]}[pooling.mode]()
    if pooling.normalize:
        vector = torch.nn.functional.normalize(vector, dim=0)
    return np.asarray(vector[None].float().numpy())
