"""Rotary positions as one operator: ``x cos + (-x2, x1) sin`` becomes ONNX Runtime's ``RotaryEmbedding``."""

from __future__ import annotations

import numpy as np
import onnx

from twoheads.export.emit.graph_builder import DOMAIN
from twoheads.export.emit.lean.known_graph import KnownGraph

__all__ = ["fuse_rotary"]

THROUGH = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"})


def fuse_rotary(graph: KnownGraph) -> None:
    """Rewrites what turns the two halves of one row's heads by the same angles.

    The operator reads the angles of one half: it is used only where both halves have the same by construction, which is
    how libraries write them: the cosine of two equal arrays joined.
    """
    for node in graph.ordered():
        found = _turned(graph, node) if node.op_type == "Add" else None
        if found is None:
            continue
        x, cosine, sine = found
        heads, width = graph.shapes[x][1], graph.shapes[x][3]
        rows = graph.add(
            "Reshape", [x, graph.dims([1, 1, heads * width])], f"{node.output[0]}.rows", (1, 1, heads * width)
        )
        operands = [
            rows,
            graph.array("lean/first", np.zeros((1, 1), np.int64)),
            _half(graph, cosine),
            _half(graph, sine),
        ]
        made = f"{node.output[0]}.turned"
        graph.add(
            "RotaryEmbedding", operands, made, (1, 1, heads * width), DOMAIN, num_heads=heads, rotary_embedding_dim=0
        )
        shape = graph.shapes[node.output[0]]
        graph.add("Reshape", [made, graph.dims(shape)], node.output[0], shape)


def _turned(graph: KnownGraph, node: onnx.NodeProto) -> tuple[str, str, str] | None:
    """``x [1, heads, 1, width]`` with cosines and sines ``[1, 1, 1, width]`` or less, whose sum ``node`` is."""
    for straight, crossed in (node.input, reversed(node.input)):
        products = graph.made_by(straight, "Mul"), graph.made_by(crossed, "Mul")
        if None in products:
            continue
        for x, cosine in _both_ways(products[0]):
            for turned, sine in _both_ways(products[1]):
                if _is_turned(graph, turned, x) and all(_repeats(graph, angle, x) for angle in (cosine, sine)):
                    return x, cosine, sine
    return None


def _both_ways(node: onnx.NodeProto | None) -> tuple[tuple[str, str], ...]:
    if node is None:
        return ()
    return (node.input[0], node.input[1]), (node.input[1], node.input[0])


def _is_turned(graph: KnownGraph, name: str, x: str) -> bool:
    """Whether a value is the second half of ``x``, negated, and the first behind it."""
    joined, shape = graph.made_by(name, "Concat"), graph.shapes.get(x, ())
    if joined is None or len(joined.input) != 2 or len(shape) != 4 or shape[0] != 1 or shape[2] != 1 or shape[3] % 2:
        return False
    if graph.types.get(x) != onnx.TensorProto.FLOAT or onnx.helper.get_attribute_value(joined.attribute[0]) not in (
        -1,
        3,
    ):
        return False
    negated = graph.made_by(joined.input[0], "Neg")
    half = shape[3] // 2
    return (
        negated is not None
        and _is_slice(graph, negated.input[0], x, half, shape[3])
        and _is_slice(graph, joined.input[1], x, 0, half)
    )


def _is_slice(graph: KnownGraph, name: str, x: str, start: int, stop: int) -> bool:
    node, width = graph.maker.get(name), graph.shapes[x][3]
    if node is None or node.input[0] != x:
        return False
    if node.op_type == "Split":
        sizes = None if len(node.input) < 2 else graph.constant(node.input[1])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        halves = axis in (-1, 3) and len(node.output) == 2 and (sizes is None or set(sizes.tolist()) == {width // 2})
        return halves and list(node.output).index(name) == (1 if start else 0)
    if node.op_type != "Slice":
        return False
    bounds = [graph.constant(operand) for operand in node.input[1:]]
    if len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return False
    first, last, axis, *step = (int(bound.reshape(())) for bound in bounds if bound is not None)
    return axis in (-1, 3) and step in ([], [1]) and (first, min(last, width)) == (start, stop)


def _repeats(graph: KnownGraph, angle: str, x: str) -> bool:
    """Whether the two halves of the cosines or sines are equal by construction."""
    width, shape = graph.shapes[x][3], graph.shapes.get(angle, ())
    if not shape or shape[-1] != width or any(dim != 1 for dim in shape[:-1]):
        return False
    while (node := graph.maker.get(angle)) is not None and node.op_type not in ("Cos", "Sin"):
        scaled = node.op_type == "Mul" and graph.is_number(node.input[1])
        if not scaled and not (node.op_type in THROUGH and graph.shapes.get(node.input[0], (0,))[-1] == width):
            return False
        angle = node.input[0]
    if node is None:
        return False
    angle = node.input[0]
    while (node := graph.maker.get(angle)) is not None and node.op_type in THROUGH:
        if graph.shapes.get(node.input[0], (0,))[-1] != width:
            return False
        angle = node.input[0]
    return node is not None and node.op_type == "Concat" and len(node.input) == 2 and node.input[0] == node.input[1]


def _half(graph: KnownGraph, angle: str) -> str:
    """The first half of the angles, ``[1, width / 2]``, made once."""
    made, width = f"{angle}.half", graph.shapes[angle][-1]
    if made not in graph.maker:
        row = graph.add("Reshape", [angle, graph.dims([1, width])], f"{angle}.row", (1, width))
        cut = [graph.dims([at]) for at in (0, width // 2, 1)]
        graph.add("Slice", [row, *cut], made, (1, width // 2))
    return made
