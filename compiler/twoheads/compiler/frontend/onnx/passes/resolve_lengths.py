"""Takes the arithmetic with lengths out of an ONNX graph.

A file computes its shapes from ``Shape`` operators, its position numbers by ``Range`` or ``CumSum``, its tables by
slices up to the length. A block knows nothing of this. What was measured says what all of it comes to: constants,
sizes that operators hold as formulas, reads of the inputs ``positions`` and ``length``, look-ups by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode, Sizes
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.passes.fold import without_dead_nodes
from twoheads.compiler.frontend.onnx.passes.measure import Measured
from twoheads.compiler.ir.size_formula import SizeFormula, fit_size
from twoheads.graphs.program.axes import parse_axis
from twoheads.graphs.program.program import TOKENS, Input, Value

__all__ = ["SIZE_OPERANDS", "resolve_lengths"]

SIZE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2),
    "Tile": (1,),
    "Pad": (1,),
    "Split": (1,),
    "Range": (0, 1, 2),
    "Trilu": (1,),
}
"""Operands that only shape a result: a block's are those of its own length."""

LITERALS: Mapping[str, tuple[int, ...]] = {
    **SIZE_OPERANDS,
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 2, 3),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
    "CumSum": (1,),
    "TopK": (1,),
    "OneHot": (1, 2),
    "Resize": (1, 2, 3),
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"), (1,)),
}
"""Operands that are part of the operator when they are constant: shapes, axes, numbers of parts."""

MOST_SIZES = 16


@dataclass(frozen=True, slots=True)
class Resolved:
    """A graph without length arithmetic, and the inputs that it reads besides its arguments."""

    graph: OnnxGraph
    inputs: tuple[Input, ...]


def resolve_lengths(graph: OnnxGraph, measured: Measured, outputs: Iterable[str]) -> Resolved:
    """Rewrites ``graph`` by what was ``measured``; only what ``outputs`` need is left."""
    wanted = tuple(outputs)
    resolver = _Resolver(graph, measured, wanted)
    graph = resolver.with_constants(graph)
    graph = resolver.with_sizes(graph)
    graph = resolver.with_positions(graph)
    graph = resolver.with_lengths(graph)
    graph = _with_literals(graph)
    read = {name for node in graph.nodes for name in node.inputs}
    return Resolved(graph, tuple(entry for name, entry in resolver.inputs.items() if name in read))


class _Resolver:
    """The measurements, and the inputs that were found to be needed."""

    def __init__(self, graph: OnnxGraph, measured: Measured, wanted: tuple[str, ...]) -> None:
        self.types, self.free, self.runs = measured.types, measured.free, measured.runs
        self.wanted = wanted
        self.inputs: dict[str, Input] = {}
        self.sizes = {name: sizes for name in self.free if (sizes := self._sizes(name)) is not None}

    def with_constants(self, graph: OnnxGraph) -> OnnxGraph:
        """What is the same in every run is a constant."""
        same: dict[str, Array] = {}
        for name, arrays in self.free.items():
            if all(array.shape == arrays[0].shape and np.array_equal(array, arrays[0]) for array in arrays):
                same[name] = arrays[0]
        nodes = tuple(node for node in graph.nodes if not same.keys() >= set(node.outputs))
        return without_dead_nodes(replace(graph, nodes=nodes, weights={**graph.weights, **same}), self.wanted)

    def with_sizes(self, graph: OnnxGraph) -> OnnxGraph:
        """Operands that shape a result become formulas."""
        nodes: list[OnnxNode] = []
        for node in graph.nodes:
            places = SIZE_OPERANDS.get(node.proto.op_type, ())
            found = {
                at: self.sizes[name] for at, name in enumerate(node.proto.input) if at in places and name in self.sizes
            }
            nodes.append(replace(node, sizes=found) if found else node)
        return without_dead_nodes(replace(graph, nodes=tuple(nodes)), self.wanted)

    def with_positions(self, graph: OnnxGraph) -> OnnxGraph:
        """Numbers that count tokens are read from ``positions``; tables cut at the length are looked up by them."""
        made = {node.outputs[0] for node in graph.nodes if len(node.outputs) == 1}
        affine = {name: line for name in made if (line := self._line(name)) is not None}
        nodes: list[OnnxNode] = []
        for node in graph.nodes:
            name = node.outputs[0]
            if name in affine and self._is_end(graph, name, affine):
                source = "counts" if _adds_up(graph, node) else "positions"
                nodes.extend(self._position_nodes(name, *affine[name], node.layer, source))
            elif (start_step := self._table_rows(graph, node)) is not None:
                nodes.extend(self._look_up(node, *start_step))
            else:
                nodes.append(node)
        return without_dead_nodes(replace(graph, nodes=tuple(nodes)), self.wanted)

    def with_lengths(self, graph: OnnxGraph) -> OnnxGraph:
        """Sizes that enter arithmetic are computed from the input ``length``."""
        made = {name for node in graph.nodes for name in node.outputs if name in self.sizes}
        nodes: list[OnnxNode] = []
        for node in graph.nodes:
            name = node.outputs[0]
            sizes = self.sizes.get(name)
            one = sizes if isinstance(sizes, SizeFormula) else sizes[0] if sizes and len(sizes) == 1 else None
            if one is None or len(one.of) != 1 or not self._is_end(graph, name, made):
                nodes.append(node)
            else:
                nodes.extend(self._length_nodes(name, one, node.layer))
        return without_dead_nodes(replace(graph, nodes=tuple(nodes)), self.wanted)

    def _sizes(self, name: str) -> Sizes | None:
        """The formulas of a whole number or a short row of them."""
        arrays = self.free[name]
        first = arrays[0]
        if first.dtype.kind != "i" or first.ndim > 1 or first.size > MOST_SIZES:
            return None
        if any(array.shape != first.shape for array in arrays):
            return None
        columns = zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
        fitted = [fit_size(column, self.runs) for column in columns]
        found = [formula for formula in fitted if formula is not None]
        if len(found) < len(fitted):
            return None
        return found[0] if first.ndim == 0 else tuple(found)

    def _line(self, name: str) -> tuple[int, int, str] | None:
        """``(start, step, axis)`` of a value ``start + step * position`` along its only axis, if it is one."""
        if name not in self.free or name not in self.types:
            return None
        shape = self.types[name].shape
        axis = self.types[name].axis
        if axis is None or not _is_axis(axis) or any(dim not in (1, axis) for dim in shape) or shape.count(axis) != 1:
            return None
        arrays = [array.reshape(-1) for array in self.free[name]]
        if arrays[0].dtype.kind not in "if":
            return None
        start, step = float(arrays[0][0]), float(arrays[0][1] - arrays[0][0])
        if not step or start != int(start) or step != int(step):
            return None
        fits = all(np.array_equal(array, start + step * np.arange(array.size)) for array in arrays)
        return (int(start), int(step), axis) if fits else None

    def _is_end(self, graph: OnnxGraph, name: str, found: Iterable[str]) -> bool:
        """Whether something else than another such value reads it: what leads up to the last of a chain falls away."""
        known = set(found)
        return name in self.wanted or any(name in node.inputs and node.outputs[0] not in known for node in graph.nodes)

    def _position_input(self, axis: str, source: str = "positions") -> str:
        name = source if axis == TOKENS else f"{source}_{re.sub(r'[^a-z0-9]', '_', axis)}"
        self.inputs.setdefault(name, Input(Value(name, "int64", (axis,)), source, None))
        return name

    def _position_nodes(
        self, name: str, start: int, step: int, axis: str, layer: str, source: str
    ) -> Iterator[OnnxNode]:
        type_ = self.types[name]
        shape = [-1 if isinstance(dim, str) else 1 for dim in type_.shape]
        yield from _line_nodes(self._position_input(axis, source), name, (step, start, 1), type_.dtype, shape, layer)

    def _length_nodes(self, name: str, size: SizeFormula, layer: str) -> Iterator[OnnxNode]:
        axis = size.of[0]
        source = f"length_{axis}"
        self.inputs.setdefault(source, Input(Value(source, "int64", (1,)), "length", None, axis))
        type_ = self.types[name]
        line = (size.factor, size.add, size.div)
        yield from _line_nodes(source, name, line, type_.dtype, [1] * len(type_.shape), layer)

    def _table_rows(self, graph: OnnxGraph, node: OnnxNode) -> tuple[int, int, int, str] | None:
        """``(dimension, start, step, axis)`` of a slice that takes one row of a table for each token."""
        if node.proto.op_type != "Slice" or node.inputs[0] not in graph.weights:
            return None
        shape, table = self.types[node.outputs[0]].shape, graph.weights[node.inputs[0]].shape
        cut = [at for at, dim in enumerate(shape) if dim != table[at]]
        if len(cut) != 1 or not isinstance(axis := shape[cut[0]], str) or not _is_axis(axis):
            return None
        operands = [self._numbers(graph, name) for name in node.proto.input[1:]]
        starts = operands[0]
        axes = operands[2] if len(operands) > 2 and operands[2] is not None else list(range(len(shape)))
        steps = operands[3] if len(operands) > 3 and node.proto.input[4] else [1] * len(axes)
        if starts is None or steps is None:
            return None
        at = [entry % len(shape) for entry in axes].index(cut[0])
        return (cut[0], starts[at], steps[at], axis) if starts[at] >= 0 else None

    def _numbers(self, graph: OnnxGraph, name: str) -> list[int] | None:
        return graph.weights[name].reshape(-1).tolist() if name in graph.weights else None

    def _look_up(self, node: OnnxNode, at: int, start: int, step: int, axis: str) -> Iterator[OnnxNode]:
        name = node.outputs[0]
        yield from _line_nodes(self._position_input(axis), f"{name}.rows", (step, start, 1), "int64", [-1], node.layer)
        yield OnnxNode(helper.make_node("Gather", [node.inputs[0], f"{name}.rows"], [name], axis=at), node.layer)


def _line_nodes(
    source: str, name: str, line: tuple[int, int, int], dtype: str, shape: list[int], layer: str
) -> Iterator[OnnxNode]:
    """``(factor * source + add) // div`` as ``dtype`` in a shape, under ``name``; ``source`` is int64 of rank 1."""
    value = source
    for operator, number, neutral in (("Mul", line[0], 1), ("Add", line[1], 0), ("Div", line[2], 1)):
        if number != neutral:
            result = f"{name}.{operator.lower()}"
            proto = helper.make_node(operator, [value, "number"], [result])
            yield OnnxNode(proto, layer, constants={1: np.array(number, np.int64)})
            value = result
    if dtype != "int64":
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        yield OnnxNode(helper.make_node("Cast", [value], [f"{name}.cast"], to=kind), layer)
        value = f"{name}.cast"
    # Also where the shape is that of the source: the value keeps the name that its readers know.
    proto = helper.make_node("Reshape", [value, "shape"], [name])
    yield OnnxNode(proto, layer, constants={1: np.array(shape, np.int64)})


def _with_literals(graph: OnnxGraph) -> OnnxGraph:
    """Constant shapes and axes, and single numbers, become part of their operators."""
    nodes: list[OnnxNode] = []
    for node in graph.nodes:
        places = LITERALS.get(node.proto.op_type, ())
        constants = dict(node.constants)
        for at, name in enumerate(node.proto.input):
            if name not in graph.weights or at in node.sizes:
                continue
            array = graph.weights[name]
            if (at in places and array.size <= MOST_SIZES) or array.ndim == 0:
                constants[at] = graph.weight(name)
        nodes.append(replace(node, constants=constants) if len(constants) > len(node.constants) else node)
    used = {name for node in nodes for name in node.inputs}
    return replace(graph, nodes=tuple(nodes), weights={name: w for name, w in graph.weights.items() if name in used})


def _is_axis(text: str) -> bool:
    try:
        parse_axis(text)
    except ValueError:
        return False
    return True


def _adds_up(graph: OnnxGraph, node: OnnxNode) -> bool:
    """Whether ``node`` comes from a cumulative sum: of ones, that is of an attention mask without padding."""
    producers = {name: other for other in graph.nodes for name in other.outputs}
    stack, seen = [node], set[str]()
    while stack:
        current = stack.pop()
        if current.proto.op_type == "CumSum":
            return True
        for name in current.inputs:
            if name in producers and name not in seen:
                seen.add(name)
                stack.append(producers[name])
    return False
