"""One row's arrays without the axes of length 1: what only changes their shape disappears.

An array of one row lies in memory in one order, whatever axes of length 1 it has: views between such shapes, and the
transposition of heads and rows, do nothing. Products want two axes, what stands between them has three.
"""

from __future__ import annotations

from typing import Any

import onnx

from twoheads.export.emit.lean.known_graph import KnownGraph

__all__ = ["flatten_row"]

BY_ELEMENT = frozenset(
    {"Add", "Div", "Erf", "Exp", "Gelu", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus"}
    | {"Sqrt", "Sub", "Tanh", "SkipSimplifiedLayerNormalization"}
)
VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Identity"})


def flatten_row(graph: KnownGraph) -> None:
    """Computes element by element on two axes where that is possible, and drops views of views."""
    _Flat(graph).rewrite()


class _Flat:
    """The rewriting: for every value where its numbers come from, before views."""

    def __init__(self, graph: KnownGraph) -> None:
        self._graph = graph
        self._source: dict[str, str] = {}

    def rewrite(self) -> None:
        for node in self._graph.ordered():
            if self._is_view(node):
                self._source[node.output[0]] = self._of(node.input[0])
                self._view(node)
            elif node.op_type in BY_ELEMENT or node.op_type == "ReduceMean":
                self._by_element(node)
        for node in self._graph.ordered():
            for at, name in enumerate(node.input):
                source = self._of(name)
                if self._graph.shapes.get(source) == self._graph.shapes.get(name):
                    node.input[at] = source

    def _of(self, name: str) -> str:
        return self._source.get(name, name)

    def _is_view(self, node: onnx.NodeProto) -> bool:
        """Whether a node gives the same numbers in the same order."""
        shape, made = (
            self._graph.shapes.get(name, ()) for name in (node.input[0] if node.input else "", node.output[0])
        )
        if not shape or not made or 0 in made:
            return False
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
            moved = [axis for axis in order if shape[axis] != 1]
            return moved == sorted(moved)
        return node.op_type in VIEWS

    def _view(self, node: onnx.NodeProto) -> None:
        """The view is one of its source."""
        graph, name = self._graph, node.output[0]
        shape, kind = graph.shapes[name], graph.types.get(name, onnx.TensorProto.FLOAT)
        graph.add("Reshape", [self._of(name), graph.dims(shape)], name, shape)
        graph.types[name] = kind

    def _by_element(self, node: onnx.NodeProto) -> None:
        """Computes the node on two axes where all its arrays are one row."""
        graph = self._graph
        outputs = [name for name in node.output if name]
        shapes = [graph.shapes.get(name) for name in outputs]
        if any(graph.types.get(name) != onnx.TensorProto.FLOAT or not _is_row(graph.shapes[name]) for name in outputs):
            return
        inputs = [name for name in node.input if name]
        rows = {name for name in inputs if len(graph.shapes.get(name, ())) > 1 and graph.constant(name) is None}
        if not rows or not all(_is_row(graph.shapes[name]) for name in rows):
            return
        if any(len(graph.shapes.get(name, (1, 1, 1))) > 1 for name in inputs if name not in rows):
            return
        if not any(len(graph.shapes[self._of(name)]) == 2 for name in rows):
            return
        how: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        given = [self._row(name) if name in rows else name for name in node.input]
        if node.op_type == "ReduceMean":
            axes, last = graph.constant(node.input[1]), len(graph.shapes[node.input[0]]) - 1
            if axes is None or axes.reshape(-1).tolist() not in ([-1], [last]) or how.get("keepdims", 1) != 1:
                return
            given[1] = graph.dims([-1])
        made = [f"{name}.flat" if name else "" for name in node.output]
        flat = onnx.helper.make_node(node.op_type, given, made, name=made[0], domain=node.domain, **how)
        graph.put(flat, (1, (shapes[0] or (1,))[-1]))
        for name, row in zip(node.output, made, strict=True):
            if name:
                shape = graph.shapes[name]
                graph.add("Reshape", [row, graph.dims(shape)], name, shape)
                self._source[name] = row

    def _row(self, name: str) -> str:
        """The value on two axes."""
        graph, source = self._graph, self._of(name)
        shape = (1, graph.shapes[name][-1])
        if graph.shapes[source] == shape:
            return source
        made = f"{source}.row"
        if made not in graph.maker:
            graph.add("Reshape", [source, graph.dims(shape)], made, shape)
            self._source[made] = source
        return made


def _is_row(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and all(dim == 1 for dim in shape[:-1])
