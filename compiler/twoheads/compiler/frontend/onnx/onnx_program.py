"""An ONNX file's computation behind a :class:`SourceGraph`: evaluated by ONNX Runtime, cut into regions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.compiler.ir.source_program import LookUp
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.program import Input, TokenwiseEngine

__all__ = ["OnnxProgram", "OnnxRegion"]


@dataclass(frozen=True)
class OnnxProgram:
    """The graph of a whole model after its length arithmetic has been resolved.

    Attributes:
        graph: Its operators and weights.
        inputs: What a run supplies.
        types: Of every value.
        views: By the name of an attention's result, its operands: they may be views that only the source graph reads.
    """

    graph: OnnxGraph
    inputs: tuple[Input, ...]
    types: Mapping[str, TensorType]
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def weights(self) -> Mapping[str, Array]:
        """Weights by name, as the file has them."""
        return self.graph.weights

    @cached_property
    def nodes(self) -> Mapping[str, OnnxNode]:
        """Every operator by the name of each of its results."""
        return {name: node for node in self.graph.nodes for name in node.outputs}

    def evaluate(self, names: Iterable[str], inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Computes the named values and returns everything on the way."""
        wanted = tuple(names)
        for node in self.graph.needed(wanted, inputs):
            wanted += tuple(view for name in node.outputs for view in self.views.get(name, ()))
        return self.graph.run(wanted, inputs, self.lengths(inputs), every=True)

    def evaluate_each(self, names: Iterable[str], given: Sequence[Mapping[str, Array]]) -> list[dict[str, Any]]:
        """One after the other: the weights are in memory."""
        wanted = tuple(names)
        return [self.evaluate(wanted, inputs) for inputs in given]

    def evaluate_nodes(
        self, names: Sequence[str], values: Mapping[str, Any], lengths: Mapping[str, int]
    ) -> dict[str, Array]:
        """Results from given operands, in one run: one of every operator by itself would take minutes."""
        nodes = {self.nodes[name].outputs[0]: self.nodes[name] for name in names}
        read = {name for node in nodes.values() for name in node.inputs}
        weights = {name: self.graph.weights[name] for name in read if name in self.graph.weights}
        part = OnnxGraph(self.graph.opsets, tuple(nodes.values()), weights)
        given = {name: values[name] for name in read if name in values and name not in names}
        return part.run(names, given, lengths)

    def lengths(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """The length of every input axis, read off the inputs' shapes."""
        found: dict[str, int] = {}
        for entry in self.inputs:
            if entry.source == "argument" and entry.value.axis is not None and entry.value.name in inputs:
                found[entry.value.axis] = inputs[entry.value.name].shape[entry.value.token_axis]
        return found

    def look_up(self, name: str) -> LookUp | None:
        """The table and index of a ``Gather`` of a weight."""
        node = self.nodes[name]
        if node.proto.op_type != "Gather" or len(node.inputs) != 2 or node.inputs[0] not in self.types:
            return None
        return LookUp(
            node.inputs[0], node.inputs[1], node.attributes.get("axis", 0) % len(self.types[node.inputs[0]].shape)
        )

    def region(self, *parts: Any) -> OnnxRegion:
        """See :meth:`twoheads.compiler.ir.source_program.SourceProgram.region`."""
        return OnnxRegion(self, *parts)


@dataclass(frozen=True, slots=True)
class OnnxRegion:
    """See :class:`twoheads.compiler.ir.source_program.TokenwiseRegion`."""

    program: OnnxProgram
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: str | None

    def operators(self) -> tuple[OnnxNode, ...]:
        """The operators, each once."""
        found = {self.program.nodes[name].outputs[0]: self.program.nodes[name] for name in self.nodes}
        return tuple(found.values())

    def lengths(self, engine: TokenwiseEngine) -> dict[str, int]:
        """Lengths of the input axes at which the region's values have the shapes of the engine's ports."""
        for name, port in zip((*self.inputs, *self.outputs), (*engine.inputs, *engine.outputs), strict=True):
            shape = self.program.types[name].shape
            if self.axis is not None and self.axis in shape:
                return lengths_for(self.axis, port.shape[shape.index(self.axis)])
        return {}

    def flops(self, engine: TokenwiseEngine) -> int:
        """Operations of the matrix products and convolutions of one call."""
        lengths = self.lengths(engine)
        rows = 1 if self.axis is None else axis_length(self.axis, lengths)
        return sum(_flops(node, self.program.types, rows) for node in self.operators())


def _flops(node: OnnxNode, types: Mapping[str, TensorType], rows: int) -> int:
    operator = node.proto.op_type
    if operator not in ("MatMul", "Gemm", "FusedMatMul", "Conv"):
        return 0

    def shape(name: str) -> list[int]:
        return [rows if isinstance(dim, str) else dim for dim in types[name].shape]

    result, first = shape(node.outputs[0]), shape(node.proto.input[0])
    if operator == "Conv":
        return 2 * prod(result) * prod(shape(node.proto.input[1])[1:])
    return 2 * prod(result) * first[-2 if node.attributes.get("transA") else -1]
