"""A weight's whole numbers, scales and offsets, made when they are written: one weight of a model at a time.

Of a stack of experts' weights, one expert's: what waits of a stack until all its values are written are its scales and
offsets, a sixteenth of its numbers' memory at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.weights import Stacked, in_memory, parts_in_memory
from twoheads.export.precision.quantised_arrays import in_pieces, quantise, quantise_exactly
from twoheads.export.precision.whole_products import quantise_whole
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.engines.quantised import quantised_dtype, quantised_shapes

__all__ = ["QuantisedPart", "deferred_quantised", "has_4_bits"]

CHUNK_BYTES = 4 << 20
"""Of float32 rows that are quantised at a time: sorting them takes several times their memory."""

CHECKED = 1 << 17
"""Numbers that are looked at together: what is made on the way stays in the processor's caches."""

Array = npt.NDArray[Any]


@dataclass(eq=False)
class _Quantised:
    """One weight; what is made of it is kept until each part was taken."""

    name: str
    weight: Any
    bits: int
    transposed: bool
    cut: bool
    whole: bool
    exact: bool
    waiting: dict[tuple[int, int], Array] = field(default_factory=dict[tuple[int, int], Array])

    def take(self, part: int) -> Array:
        """The array number ``part`` of values, scales and offsets; of a stack, those of all its entries."""
        if len(self.weight.shape) == 2:
            return self.take_entry(part, 0)
        return np.stack([self.take_entry(part, entry) for entry in range(self.weight.shape[0])])

    def take_entry(self, part: int, entry: int) -> Array:
        """The same of one entry of a stack; of a matrix there is one."""
        if (part, entry) not in self.waiting:
            name = self.name if len(self.weight.shape) == 2 else f"{self.name}[{entry}]"
            made = self._made(name, _rows(self._read(entry), self.transposed))
            # Of a weight that is read anew, what nobody took goes first.
            self.waiting = {key: array for key, array in self.waiting.items() if key[1] != entry}
            self.waiting |= {(at, entry): array for at, array in enumerate(made)}
        return np.ascontiguousarray(self.waiting.pop((part, entry)))

    def _made(self, name: str, rows: npt.NDArray[np.float32]) -> tuple[Array, ...]:
        if self.whole:
            values, scales = _in_chunks(name, rows, quantise_whole)
            return values.T, scales
        made = partial(_exactly, name) if self.exact else partial(quantise, bits=self.bits)
        return in_pieces(_in_chunks(name, rows, made), cut=self.cut)

    def _read(self, entry: int) -> Any:
        if len(self.weight.shape) == 2:
            return in_memory(self.weight)
        if isinstance(self.weight, Stacked) and self.weight.stacked:
            return self.weight.part(entry)
        return in_memory(self.weight)[entry]


@dataclass(frozen=True, eq=False)
class QuantisedPart:
    """Values, scales or offsets of a weight or its pieces: a :class:`twoheads.compiler.ir.weights.Stacked` array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    whole: _Quantised
    at: int

    @property
    def key(self) -> tuple[_Quantised, int]:
        """Equal for this part of this weight alone."""
        return self.whole, self.at

    def read(self) -> Array:
        """The array.

        Raises:
            CompileError: The weight is not finite.
        """
        return self.whole.take(self.at)

    @property
    def stacked(self) -> bool:
        """Whether it is of a stack of matrices, each of which is quantised alone."""
        return len(self.whole.weight.shape) == 3

    def part(self, number: int) -> Array:
        """Of entry ``number`` of a stack.

        Raises:
            CompileError: It is not finite.
        """
        return self.whole.take_entry(self.at, number)


def deferred_quantised(
    name: str,
    weight: Any,
    bits: int,
    *,
    transposed: bool,
    cut: bool = False,
    whole: bool = False,
    exact: bool = False,
) -> tuple[QuantisedPart, ...]:
    """What ``weight`` is stored as; see :func:`~twoheads.export.precision.quantised_arrays.quantise`.

    Of a weight that is multiplied in whole numbers see :mod:`twoheads.export.precision.whole_products`.

    Args:
        name: The weight's, for messages.
        weight: A matrix or a stack of them, in memory or not: a tensor or an array.
        bits: 8 or 4.
        transposed: The product sums over its first dimension; over that of a stack's entries.
        cut: Long rows of 4 bits lie in pieces.
        whole: A matrix that is multiplied in whole numbers.
        exact: No number changes, as :func:`has_4_bits` found; what is read has such numbers, or it is our bug.
    """
    *stack, outer, inner = (*weight.shape[:-2], *reversed(weight.shape[-2:])) if transposed else weight.shape
    source = _Quantised(name, weight, bits, transposed, cut, whole, exact)
    shapes = quantised_shapes(outer, inner, bits, cut=cut, whole=whole)
    return tuple(
        QuantisedPart((*stack, *shape), np.dtype(quantised_dtype(shapes, at)), source, at)
        for at, shape in enumerate(shapes)
    )


def has_4_bits(weight: Any, *, transposed: bool) -> bool:
    """Whether 4 bits, scales and offsets give every number of ``weight`` back; arguments as above.

    One entry of it is in memory at a time. What has other numbers shows that in its first rows.
    """
    matrices = parts_in_memory(weight) if len(weight.shape) > 2 else iter((in_memory(weight),))
    return all(_has_4_bits(_rows(matrix, transposed)) for matrix in matrices)


def _has_4_bits(rows: npt.NDArray[np.float32]) -> bool:
    step = max(1, CHECKED // rows.shape[1])
    return quantise_exactly(rows[:1]) is not None and all(
        quantise_exactly(rows[start : start + step]) is not None for start in range(0, len(rows), step)
    )


def _exactly(name: str, rows: Array) -> tuple[Array, ...]:
    made = quantise_exactly(rows)
    if made is None:
        raise InternalError(f"weight {name} has other numbers than those which 4 bits hold")
    return made


def _rows(weight: Any, transposed: bool) -> npt.NDArray[np.float32]:
    """The weight in memory as ``[outer, inner]``."""
    array = weight if isinstance(weight, np.ndarray) else weight.detach().float().numpy()
    array = np.asarray(array, np.float32)
    return array.T if transposed else array


def _in_chunks(
    name: str, rows: npt.NDArray[np.float32], quantised: Callable[[Array], tuple[Array, ...]]
) -> tuple[Array, ...]:
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    made: tuple[Array, ...] = ()
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        if not np.isfinite(chunk).all():
            raise CompileError(f"weight {name}", "is not finite, so it has no scale", "repair the model")
        parts = quantised(chunk)
        made = made or tuple(np.empty((len(rows), *part.shape[1:]), part.dtype) for part in parts)
        for whole, part in zip(made, parts, strict=True):
            whole[start : start + step] = part
    return made
