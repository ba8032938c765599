"""Weights of few bits as ports: whole numbers, every 32 of them with a scale, and with 4 bits an offset."""

from __future__ import annotations

from twoheads.graphs.program.engines.port import Port

__all__ = ["LONG_ROW", "QUANTISATION_BLOCK", "quantised_ports", "quantised_shapes", "reads_in_pieces"]

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


def reads_in_pieces(port: Port) -> bool:
    """Whether these are the values of 4 bits of a weight with rows longer than :data:`LONG_ROW`."""
    packed = QUANTISATION_BLOCK * 4 // 8
    return (
        port.dtype == "uint8"
        and len(port.shape) == 3
        and port.shape[2] == packed
        and port.shape[1] * QUANTISATION_BLOCK > LONG_ROW
    )
