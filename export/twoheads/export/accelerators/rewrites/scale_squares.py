"""Keeps the squares of a root mean square inside of half precision: float16 ends at the square of 256.

Decoders have a few channels far larger than the others; SmolLM2's reach 22,000. Their squares are infinite in float16,
and a row that is divided by infinity is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["scale_squares"]

FLOOR = 2.0**-6
"""A row is divided by this at least: the squares of a smaller one are small without it."""

SHARE = 0.25
"""Of a row's largest magnitude, what it is divided by. The reciprocal of that magnitude itself may be too small
for chips without subnormal numbers. A sum of 4,000 squares is inside of float16's range, were all the largest."""

FLOOR_NAME, SHARE_NAME = "squares_floor", "squares_share"

Array = npt.NDArray[Any]


def scale_squares(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with ``sqrt(mean(x * x) + e)`` as ``s * sqrt(mean((x / s) * (x / s)) + (sqrt(e) / s) ** 2)``.

    ``s`` is a quarter of a row's largest magnitude, so no square is larger than 16. In real numbers nothing changes.

    Args:
        model: An engine.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    numbers = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) == 1
    }
    nodes: list[onnx.NodeProto] = []
    constants = {FLOOR_NAME: FLOOR, SHARE_NAME: SHARE}
    for node in model.graph.node:
        parts = _parts(node, made, numbers)
        if parts is None:
            nodes.append(node)
            continue
        value, mean, added = parts
        constants[f"{node.output[0]}.added"] = math.sqrt(added)
        nodes += _scaled(node.output[0], value, mean)
    if len(constants) == 2:
        return model
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    del scaled.graph.node[:]
    scaled.graph.node.extend(_read(nodes, {port.name for port in model.graph.output}))
    for name, number in constants.items():
        scaled.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    return scaled


def _parts(
    root: onnx.NodeProto, made: Mapping[str, onnx.NodeProto], numbers: Mapping[str, Array]
) -> tuple[str, onnx.NodeProto, float] | None:
    """Of a root of a mean of squares: what is squared, the node of the mean, and what is added to it."""
    total = made.get(root.input[0]) if root.op_type == "Sqrt" else None
    if total is None or total.op_type != "Add":
        return None
    for at in range(2):
        mean, added = made.get(total.input[at]), numbers.get(total.input[1 - at])
        if mean is None or added is None or mean.op_type != "ReduceMean" or added.item() < 0 or not _keeps(mean):
            continue
        square = made.get(mean.input[0])
        if square is not None and _is_square(square, numbers):
            return square.input[0], mean, float(added.item())
    return None


def _keeps(mean: onnx.NodeProto) -> bool:
    """Whether the mean keeps the axis that it is over, so that a row can be divided by what it has there."""
    return all(attribute.i == 1 for attribute in mean.attribute if attribute.name == "keepdims")


def _is_square(node: onnx.NodeProto, numbers: Mapping[str, Array]) -> bool:
    if node.op_type == "Pow":
        exponent = numbers.get(node.input[1])
        return exponent is not None and exponent.item() == 2
    return node.op_type == "Mul" and node.input[0] == node.input[1]


def _scaled(root: str, value: str, mean: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that stand for the root named ``root``; means and maxima are over the same axes."""

    def over(operator: str, given: str, made: str) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(mean)
        node.op_type, node.name, node.input[0], node.output[0] = operator, made, given, made
        return node

    def step(operator: str, *names: str) -> onnx.NodeProto:
        return helper.make_node(operator, list(names[:-1]), [names[-1]], name=f"{names[-1]}.node")

    size, largest, part = (f"{root}.{made}" for made in ("size", "largest", "part"))
    scale, row, square = (f"{root}.{made}" for made in ("scale", "row", "square"))
    less, lesser, average = (f"{root}.{made}" for made in ("less", "lesser", "mean"))
    total, small = (f"{root}.{made}" for made in ("total", "small"))
    return [
        step("Abs", value, size),
        over("ReduceMax", size, largest),
        step("Mul", largest, SHARE_NAME, part),
        step("Max", part, FLOOR_NAME, scale),
        step("Div", value, scale, row),
        step("Mul", row, row, square),
        over("ReduceMean", square, average),
        step("Div", f"{root}.added", scale, less),
        step("Mul", less, less, lesser),
        step("Add", average, lesser, total),
        step("Sqrt", total, small),
        step("Mul", small, scale, root),
    ]


def _read(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose results are read: squares and means of before are not."""
    wanted, kept = set(outputs), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
