"""How large the arrays are that operators make of constants alone: a file of 100 bytes can ask for 100 GB."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import TypeAlias

from twoheads.runtime.bundle.engine_files.onnx_file import OnnxNode, OnnxTensor

__all__ = ["made_elements"]

Numbers: TypeAlias = "list[float]"

UNBOUNDED = 1 << 63
"""More than any limit."""


def made_elements(node: OnnxNode, constants: Mapping[str, OnnxTensor]) -> int | None:
    """Numbers that the result of ``node`` has at least, by what its constant operands ask for.

    0 for an operator that is not asked for a size; ``None`` where the operands that ask for it are no constants.
    """
    if node.operator not in _MAKERS:
        return 0
    first, last, size = _MAKERS[node.operator]
    operands = [constants.get(name) for name in node.inputs[first:last]]
    numbers = [None if operand is None else operand.numbers() for operand in operands]
    known: Sequence[Numbers] = [array.tolist() for array in numbers if array is not None]
    if not known or len(known) < len([name for name in node.inputs[first:last] if name]):
        return None
    try:
        return size(known)
    except (OverflowError, ValueError):  # infinitely many, or no number of them
        return UNBOUNDED


def _product(operands: Sequence[Numbers]) -> int:
    return prod(abs(int(number)) for number in operands[0])


def _range(operands: Sequence[Numbers]) -> int:
    start, limit, step = (operand[0] if operand else 0 for operand in operands)
    return max(0, ceil((limit - start) / step)) if step else 0


def _resized(operands: Sequence[Numbers]) -> int:
    """By factors, of which the result has at least the product, or by sizes."""
    return max(ceil(prod(map(abs, numbers))) for numbers in operands)


def _sum(operands: Sequence[Numbers]) -> int:
    return sum(abs(int(number)) for number in operands[0])


_MAKERS: dict[str, tuple[int, int, Callable[[Sequence[Numbers]], int]]] = {
    "ConstantOfShape": (0, 1, _product),
    "Expand": (1, 2, _product),
    "Tile": (1, 2, _product),
    "Range": (0, 3, _range),
    "Pad": (1, 2, _sum),
    "Resize": (2, 4, _resized),
    "OneHot": (1, 2, _product),
    "CenterCropPad": (1, 2, _product),
    "HannWindow": (0, 1, _product),
    "HammingWindow": (0, 1, _product),
    "BlackmanWindow": (0, 1, _product),
}
"""By operator: which operands ask for a size, and how it follows from their numbers."""
