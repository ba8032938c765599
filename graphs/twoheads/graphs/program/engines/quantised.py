"""Weights of few bits as ports: whole numbers, every 32 of them with a scale, and with 4 bits an offset.

Those that are multiplied in whole numbers have 8 bits, and one scale for all numbers that a result sums over.
"""

from __future__ import annotations

from collections.abc import Sequence

from twoheads.graphs.program.engines.port import Port

__all__ = [
    "LONG_ROW",
    "QUANTISATION_BLOCK",
    "WHOLE_VALUES",
    "numbers_beside",
    "quantised_dtype",
    "quantised_names",
    "quantised_ports",
    "quantised_shapes",
]

QUANTISATION_BLOCK = 32
"""Numbers of a weight that share a scale."""

WHOLE_VALUES = "int8"
"""Of weights that are multiplied in whole numbers; no other weight has this format."""

LONG_ROW = 2048
"""Longer rows of 4 bits are multiplied in pieces: the kernel's sum of a whole row rounds too much (docs/design)."""

PIECE = 1024
"""Numbers of a piece of a long row; the kernel of 4 bits in float32 sums a row one by one. The error of a product, as a
share of its numbers' spread, with rows of 4,096 and 11,008: 8e-7 and 1.3e-6 in one piece, 3.7e-7 in pieces, 1.9e-7 in
float32. Pieces of 512: 2.6e-7, and 3 to 6 % more time; of 2,048: 5.3e-7, and 2 to 6 % less."""

OFFSETS = "offsets"


def quantised_shapes(
    outer: int, inner: int, bits: int, *, cut: bool = False, whole: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The shapes of a weight ``[outer, inner]``'s values and scales, and of the offsets that 4 bits have beside.

    Args:
        outer: Of the weight.
        inner: Of the weight, the dimension of the sum.
        bits: Of a value.
        cut: Long rows of 4 bits lie in pieces: first the values of each, then the scales of each. Offsets never do.
        whole: It is multiplied in whole numbers: values ``[inner, outer]``, as kernels read them, scales ``[outer]``.
    """
    if whole:
        return (inner, outer), (outer,)
    pieces = _pieces(inner) if cut and bits == 4 and inner > LONG_ROW else (inner,)
    blocks = [piece // QUANTISATION_BLOCK for piece in pieces]
    return (
        *((outer, count, QUANTISATION_BLOCK * bits // 8) for count in blocks),
        *((outer, count) for count in blocks),
        *(((outer, sum(blocks)),) if bits == 4 else ()),
    )


def _pieces(inner: int) -> tuple[int, ...]:
    """Numbers of each piece of a row."""
    return tuple(min(PIECE, inner - start) for start in range(0, inner, PIECE))


def quantised_dtype(shapes: Sequence[tuple[int, ...]], at: int) -> str:
    """The number format of the array ``at`` of :func:`quantised_shapes`: values come first, and their kinds differ."""
    if len(shapes[0]) == 2:
        return WHOLE_VALUES if at == 0 else "float32"
    return "uint8" if len(shapes[at]) == 3 else "float32"


def quantised_ports(
    port: Port, bits: int, *, transposed: bool, cut: bool = False, whole: bool = False
) -> tuple[Port, ...]:
    """The ports of values, scales and offsets that take the place of ``port``, as :func:`quantised_shapes` has them."""
    outer, inner = reversed(port.shape) if transposed else port.shape
    shapes = quantised_shapes(outer, inner, bits, cut=cut, whole=whole)
    names = quantised_names(port.name, bits, len(shapes) // 2)
    return tuple(
        Port(name, quantised_dtype(shapes, at), shape)
        for at, (name, shape) in enumerate(zip(names, shapes, strict=True))
    )


def quantised_names(name: str, bits: int, pieces: int) -> tuple[str, ...]:
    """What the arrays of :func:`quantised_shapes` are called that stand for ``name``, in that many pieces."""
    numbers = [f".{piece}" for piece in range(pieces)] if pieces > 1 else [""]
    parts = [*(f"int{bits}{number}" for number in numbers), *(f"scales{number}" for number in numbers)]
    return tuple(f"{name}:{part}" for part in (*parts, *((OFFSETS,) if bits == 4 else ())))


def numbers_beside(port: Port) -> int:
    """Numbers that a product has in memory for a row of tokens beside row and result, by one port of its weight.

    With the offsets of 4 bits: the result without them; of long rows pieces of the row, and two partial results. With
    whole numbers: the row rotated and rounded, and the result before its scale.
    """
    if port.dtype == WHOLE_VALUES:
        inner, outer = port.shape
        return 2 * inner + outer
    if not port.name.endswith(f":{OFFSETS}"):
        return 0
    outer, inner = port.shape[0], port.shape[1] * QUANTISATION_BLOCK
    return 3 * outer + inner if inner > LONG_ROW else outer
