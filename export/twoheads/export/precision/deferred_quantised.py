"""A weight's whole numbers, scales and offsets, made when they are written: one weight of a model at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.weights import in_memory
from twoheads.export.precision.quantised_arrays import quantise, quantised_shapes
from twoheads.graphs.errors import CompileError

__all__ = ["QuantisedPart", "deferred_quantised"]

CHUNK_BYTES = 4 << 20
"""Of float32 rows that are quantised at a time: sorting them takes several times their memory."""

Array = npt.NDArray[Any]


@dataclass(eq=False)
class _Quantised:
    """One weight; what is made of it is kept until each part was taken."""

    name: str
    weight: Any
    bits: int
    transposed: bool
    waiting: dict[int, Array] = field(default_factory=dict[int, Array])

    def take(self, part: int) -> Array:
        """The array number ``part``: values, scales, offsets."""
        if part not in self.waiting:
            self.waiting = dict(enumerate(_in_chunks(self.name, _rows(self.weight, self.transposed), self.bits)))
        return self.waiting.pop(part)


@dataclass(frozen=True, eq=False)
class QuantisedPart:
    """Values, scales or offsets of a weight: a :class:`twoheads.compiler.ir.weights.Deferred` array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: _Quantised
    part: int

    @property
    def key(self) -> tuple[_Quantised, int]:
        """Equal for this part of this weight alone."""
        return self.whole, self.part

    def read(self) -> Array:
        """The array.

        Raises:
            CompileError: The weight is not finite.
        """
        return self.whole.take(self.part)


def deferred_quantised(name: str, weight: Any, bits: int, *, transposed: bool) -> tuple[QuantisedPart, ...]:
    """What ``weight`` is stored as; see :func:`~twoheads.export.precision.quantised_arrays.quantise`.

    Args:
        name: The weight's, for messages.
        weight: A matrix, in memory or not: a tensor or an array.
        bits: 8 or 4.
        transposed: The product sums over its first dimension.
    """
    outer, inner = reversed(weight.shape) if transposed else weight.shape
    whole = _Quantised(name, weight, bits, transposed)
    dtypes = (np.uint8, np.float32, np.float32)
    shapes = quantised_shapes(outer, inner, bits)
    return tuple(QuantisedPart(shape, np.dtype(dtypes[at]), whole, at) for at, shape in enumerate(shapes))


def _rows(weight: Any, transposed: bool) -> npt.NDArray[np.float32]:
    """The weight ``[outer, inner]``."""
    found = in_memory(weight)
    array = found if isinstance(found, np.ndarray) else found.detach().float().numpy()
    array = np.asarray(array, np.float32)
    return array.T if transposed else array


def _in_chunks(name: str, rows: npt.NDArray[np.float32], bits: int) -> tuple[Array, ...]:
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    made: tuple[Array, ...] = ()
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        if not np.isfinite(chunk).all():
            raise CompileError(f"weight {name}", "is not finite, so it has no scale", "repair the model")
        parts = quantise(chunk, bits)
        made = made or tuple(np.empty((len(rows), *part.shape[1:]), part.dtype) for part in parts)
        for whole, part in zip(made, parts, strict=True):
            whole[start : start + step] = part
    return made
