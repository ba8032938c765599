"""Operators whose results are as large as a number says: looked at before they run, and refused beyond a bound.

The file is anybody's, and a few bytes may ask for an array of any size. So a graph is run in parts: each ends before an
operator that makes an array of a size that the part itself computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twoheads.graphs.errors import CompileError

__all__ = ["LARGEST", "deciding", "largest_made", "parts"]

LARGEST = 1 << 27
"""Numbers that such an operator may make: half a gigabyte of float32, or the square of 11,585 positions."""

_DECIDING = {
    "ConstantOfShape": (0,),
    "Expand": (0, 1),
    "Tile": (0, 1),
    "Range": (0, 1, 2),
    "Pad": (0, 1, 3),
    "OneHot": (0, 1),
    "Resize": (0, 2, 3),
}
"""By operator, the operands that decide how large its result is."""

Array = npt.NDArray[Any]


def deciding(proto: onnx.NodeProto) -> list[int]:
    """The places of the operands that decide how large the result is; none where it is about as large as they are."""
    places = _DECIDING.get(proto.op_type, ()) if proto.domain in ("", "ai.onnx") else ()
    return [at for at in places if at < len(proto.input) and proto.input[at]]


def parts(nodes: Sequence[Any]) -> Iterator[list[Any]]:
    """``nodes`` (of :class:`~twoheads.compiler.frontend.onnx.model.graph.OnnxNode`) in parts that run one by one."""
    part: list[Any] = []
    made: set[str] = set()
    for node in nodes:
        if part and any(node.proto.input[at] in made for at in deciding(node.proto)):
            yield part
            part, made = [], set()
        part.append(node)
        made.update(node.outputs)
    yield part


def largest_made(proto: onnx.NodeProto, operands: Mapping[int, Array], where: str) -> int:
    """How many numbers the operator makes of ``operands``, by their places.

    Raises:
        CompileError: More than :data:`LARGEST`.
    """
    count = _count(proto.op_type, operands)
    if count > LARGEST:
        raise CompileError(
            where,
            f"makes an array of {count} numbers ({proto.op_type}), at most {LARGEST} are computed at compile time",
            "export a model whose arrays follow from its inputs' lengths",
        )
    return count


def _count(operator: str, operands: Mapping[int, Array]) -> int:
    first = operands[0]
    match operator:
        case "ConstantOfShape":
            return prod(_numbers(first))
        case "Expand":
            shape, wanted = list(first.shape), _numbers(operands[1])
            rank = max(len(shape), len(wanted))
            sizes = [[1] * (rank - len(dims)) + dims for dims in (shape, wanted)]
            return prod(max(pair) for pair in zip(*sizes, strict=True))
        case "Tile":
            return first.size * prod(_numbers(operands[1]))
        case "Range":
            start, stop, step = (float(operands[at].reshape(-1)[0]) for at in range(3))
            return _whole((stop - start) / step) if step else 0
        case "Pad":
            pads = _numbers(operands[1])
            axes = operands[3].reshape(-1).tolist() if 3 in operands else range(first.ndim)
            grown = dict.fromkeys(range(first.ndim), 0)
            for at, axis in enumerate(axes):
                grown[int(axis) % max(first.ndim, 1)] += sum(pads[at :: max(len(pads) // 2, 1)][:2])
            return prod(max(size + grown[axis], 0) for axis, size in enumerate(first.shape))
        case "OneHot":
            return first.size * max(_numbers(operands[1]), default=0)
        case _:  # Resize, by factors or by sizes
            if 3 in operands and operands[3].size:
                return prod(_numbers(operands[3]))
            factors = operands[2].reshape(-1).tolist() if 2 in operands else []
            return _whole(float(first.size) * prod(map(float, factors)))


def _numbers(array: Array) -> list[int]:
    return [_whole(value) for value in array.reshape(-1).tolist()]


def _whole(value: float) -> int:
    return int(value) if np.isfinite(value) else 0  # ONNX Runtime refuses what is no number
