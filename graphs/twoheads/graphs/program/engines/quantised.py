"""Weights of few bits as ports: whole numbers, every 32 of them with a scale, and with 4 bits an offset."""

from __future__ import annotations

from twoheads.graphs.program.engines.port import Port

__all__ = ["LONG_ROW", "QUANTISATION_BLOCK", "numbers_beside", "quantised_ports", "quantised_shapes"]

QUANTISATION_BLOCK = 32
"""Numbers of a weight that share a scale."""

LONG_ROW = 2048
"""Longer rows of 4 bits are multiplied in pieces: the kernel's sum of a whole row rounds too much (docs/design)."""


def quantised_shapes(outer: int, inner: int, bits: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a weight ``[outer, inner]``'s values and scales, and of the offsets that 4 bits have beside."""
    blocks = inner // QUANTISATION_BLOCK
    return (
        (outer, blocks, QUANTISATION_BLOCK * bits // 8),
        (outer, blocks),
        *(((outer, blocks),) if bits == 4 else ()),
    )


def quantised_ports(port: Port, bits: int, *, transposed: bool) -> tuple[Port, ...]:
    """The ports of values, scales and offsets that take the place of ``port``."""
    outer, inner = reversed(port.shape) if transposed else port.shape
    named = zip((f"int{bits}", "scales", "offsets"), quantised_shapes(outer, inner, bits), strict=False)
    return tuple(Port(f"{port.name}:{part}", "uint8" if not at else "float32", s) for at, (part, s) in enumerate(named))


def numbers_beside(port: Port) -> int:
    """Numbers that a product with the weight of 4 bits whose values these are has in memory for a row of tokens.

    Beside the row and the result: the result without offsets; of long rows pieces of the row, and two partial results.
    """
    if port.dtype != "uint8" or len(port.shape) != 3 or port.shape[2] != QUANTISATION_BLOCK * 4 // 8:
        return 0
    outer, inner = port.shape[0], port.shape[1] * QUANTISATION_BLOCK
    return 3 * outer + inner if inner > LONG_ROW else outer
