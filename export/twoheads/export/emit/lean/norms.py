"""Root mean square norms in the forms that ONNX Runtime computes by one operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from twoheads.export.emit.graph_builder import DOMAIN
from twoheads.export.emit.lean.known_graph import KnownGraph

__all__ = ["fuse_norms"]


@dataclass(frozen=True, slots=True)
class _Norm:
    """``x / sqrt(mean(x * x) + epsilon)`` times a weight: the names of the values, and the operator of the quotient."""

    x: str
    weight: str
    root: str
    epsilon: float
    quotient: str


def fuse_norms(graph: KnownGraph) -> None:
    """Norms of a sum become one operator with the sum; others are divided by the root, which ONNX Runtime fuses."""
    for node in graph.ordered():
        found = _norm(graph, node) if node.op_type == "Mul" else None
        if found is None:
            continue
        shape, added = graph.shapes[node.output[0]], graph.made_by(found.x, "Add")
        if added is not None and all(graph.shapes.get(name) == shape for name in added.input) and len(shape) <= 3:
            graph.put(
                onnx.helper.make_node(
                    "SkipSimplifiedLayerNormalization", [*added.input, found.weight],
                    [node.output[0], "", "", found.x], name=node.output[0], domain=DOMAIN, epsilon=found.epsilon,
                ),
                shape,
            )  # fmt: skip
        else:
            graph.add("Div", [found.x, found.root], found.quotient, shape)


def _norm(graph: KnownGraph, node: onnx.NodeProto) -> _Norm | None:
    """The norm that ends in ``node``."""
    for inner, weight in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        scaled, shape = graph.made_by(inner, "Mul"), graph.shapes.get(node.output[0], ())
        if scaled is None or not shape or graph.shapes.get(weight) != shape[-1:] or shape[-1] == 1:
            continue
        for x, factor in ((scaled.input[0], scaled.input[1]), (scaled.input[1], scaled.input[0])):
            root = graph.made_by(factor, "Reciprocal")
            epsilon = None if root is None else _epsilon(graph, x, root.input[0])
            if root is not None and epsilon is not None and graph.types.get(x) == onnx.TensorProto.FLOAT:
                return _Norm(x, weight, root.input[0], epsilon, inner)
    return None


def _epsilon(graph: KnownGraph, x: str, root: str) -> float | None:
    """What is added to the mean of the squares of ``x`` under the root."""
    square_root = graph.made_by(root, "Sqrt")
    added = None if square_root is None else graph.made_by(square_root.input[0], "Add")
    if added is None:
        return None
    for mean, number in ((added.input[0], added.input[1]), (added.input[1], added.input[0])):
        epsilon, averaged = graph.constant(number), graph.made_by(mean, "ReduceMean")
        if epsilon is not None and epsilon.size == 1 and averaged is not None and _over_last(graph, averaged):
            squared = graph.maker.get(averaged.input[0])
            if squared is not None and _is_square(graph, squared, x):
                return float(epsilon.reshape(()))
    return None


def _over_last(graph: KnownGraph, node: onnx.NodeProto) -> bool:
    how = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = graph.constant(node.input[1]) if len(node.input) > 1 else None
    last = len(graph.shapes.get(node.input[0], ())) - 1
    return axes is not None and axes.reshape(-1).tolist() in ([-1], [last]) and how.get("keepdims", 1) == 1


def _is_square(graph: KnownGraph, node: onnx.NodeProto, x: str) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [x, x]
    return node.op_type == "Pow" and node.input[0] == x and graph.is_number(node.input[1], 2.0)
