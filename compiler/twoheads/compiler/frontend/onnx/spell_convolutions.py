"""Convolutions along tokens, written out: the rows under each of a kernel's taps, then a product of each row alone.

As the torch door's rule (``frontend/torch/rows/convolutions.py``), in operators that are read as row movement: a
``Pad``, a ``Slice`` for every tap, and a convolution that has one tap along the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.source_graph import TensorType

__all__ = ["spell_convolutions"]

END = np.iinfo(np.int64).max


def spell_convolutions(graph: OnnxGraph, types: Mapping[str, TensorType]) -> OnnxGraph:
    """The graph with them written out; the same graph if there are none.

    Args:
        graph: What to rewrite.
        types: Of its values.
    """
    nodes: list[OnnxNode] = []
    weights = dict(graph.weights)
    for node in graph.nodes:
        axis = _axis(node, graph, types)
        nodes.extend([node] if axis is None else _spelled(node, axis, types[node.proto.input[0]], weights))
    return graph if len(nodes) == len(graph.nodes) else replace(graph, nodes=tuple(nodes), weights=weights)


def _axis(node: OnnxNode, graph: OnnxGraph, types: Mapping[str, TensorType]) -> int | None:
    """The token axis that a convolution by weights of the file moves rows along."""
    if node.proto.op_type != "Conv" or node.proto.input[1] not in graph.weights:
        return None
    shape = types[node.proto.input[0]].shape
    axes = [at for at, dim in enumerate(shape) if isinstance(dim, str)]
    if len(axes) != 1 or axes[0] < 2 or _padding(node.attributes, len(shape) - 2) is None:
        return None
    at, kernel = axes[0] - 2, graph.weights[node.proto.input[1]].shape
    alone = kernel[axes[0]] == 1 and _each(node.attributes, "strides", len(shape) - 2)[at] == 1
    return None if alone and not any(_padded(node.attributes, at, len(shape) - 2)) else axes[0]


def _spelled(node: OnnxNode, axis: int, given: TensorType, weights: dict[str, Array]) -> Iterator[OnnxNode]:
    name, spatial, at = node.outputs[0], len(given.shape) - 2, axis - 2
    kernel, attributes = weights[node.proto.input[1]], node.attributes
    taps, dilation = kernel.shape[axis], _each(attributes, "dilations", spatial)[at]
    stride, reach = _each(attributes, "strides", spatial)[at], dilation * (kernel.shape[axis] - 1)

    def constant(suffix: str, *numbers: int) -> str:
        weights[f"{name}.{suffix}"] = np.array(numbers, np.int64)
        return f"{name}.{suffix}"

    def made(operator: str, operands: list[str], suffix: str, **more: Any) -> OnnxNode:
        return OnnxNode(helper.make_node(operator, operands, [f"{name}.{suffix}"], **more), node.layer)

    rows = node.proto.input[0]
    before, after = _padded(attributes, at, spatial)
    if before or after:
        ends = [after if place == axis else 0 for place in range(spatial + 2)]
        pads = constant("pads", *(before if place == axis else 0 for place in range(spatial + 2)), *ends)
        yield made("Pad", [rows, pads], "padded")
        rows = f"{name}.padded"
    parts: list[str] = []
    along, step, second = constant("along", axis), constant("step", stride), constant("second", 2)
    for tap in range(taps):
        start, rest = constant(f"start.{tap}", tap * dilation), reach - tap * dilation
        end = constant(f"end.{tap}", -rest if rest else END)
        yield made("Slice", [rows, start, end, along, step], f"rows.{tap}")
        yield made("Unsqueeze", [f"{name}.rows.{tap}", second], f"tap.{tap}")
        parts.append(f"{name}.tap.{tap}")
    yield made("Concat", parts, "stacked", axis=2)
    sizes = [-1 if place == axis else int(dim) for place, dim in enumerate(given.shape) if place > 1]
    flat = constant("shape", 1, int(given.shape[1]) * taps, *sizes)
    yield made("Reshape", [f"{name}.stacked", flat], "columns")
    beside = np.moveaxis(kernel, axis, 2)
    beside = np.expand_dims(beside.reshape(len(kernel), -1, *beside.shape[3:]), axis)
    weights[f"{name}.kernel"] = np.ascontiguousarray(beside)
    yield _product(node, at, spatial)


def _product(node: OnnxNode, at: int, spatial: int) -> OnnxNode:
    """The convolution of the stacked rows, with one tap along the tokens."""
    name, attributes = node.outputs[0], node.attributes
    own: dict[str, Any] = {
        "strides": _each(attributes, "strides", spatial),
        "dilations": _each(attributes, "dilations", spatial),
        "pads": [
            pad for end in (0, 1) for pad in (_padded(attributes, place, spatial)[end] for place in range(spatial))
        ],
    }
    for numbers, neutral in ((own["strides"], 1), (own["dilations"], 1), (own["pads"], 0)):
        numbers[at] = neutral
    own["pads"][spatial + at] = 0
    operands = [f"{name}.columns", f"{name}.kernel", *node.proto.input[2:]]
    proto = helper.make_node("Conv", operands, [name], group=attributes.get("group", 1), **own)
    return OnnxNode(proto, node.layer)


def _each(attributes: Mapping[str, Any], name: str, spatial: int) -> list[int]:
    return [int(number) for number in attributes.get(name, [1] * spatial)]


def _padding(attributes: Mapping[str, Any], spatial: int) -> list[int] | None:
    """Zeros before, then after each axis; ``None`` where they depend on the length."""
    kind = attributes.get("auto_pad", b"NOTSET")
    if kind == b"NOTSET":
        return [int(number) for number in attributes.get("pads", [0] * 2 * spatial)]
    return [0] * 2 * spatial if kind == b"VALID" else None


def _padded(attributes: Mapping[str, Any], at: int, spatial: int) -> tuple[int, int]:
    pads = _padding(attributes, spatial) or [0] * 2 * spatial
    return pads[at], pads[spatial + at]
