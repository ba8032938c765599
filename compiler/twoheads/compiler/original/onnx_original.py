"""Runs an ONNX file's own operators over a whole sequence: what a bundle is verified against.

Two evaluations that differ only by rounding give the noise floor: ONNX Runtime with all of its optimisations, and
without any, each product's inner dimension cut into two halves whose results are added. The second exists for every
file, and rounds differently wherever a compiled model may: in projections, in scores and in sums over keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.bind_inputs import bind_inputs
from twoheads.compiler.frontend.onnx.capture import capture_onnx, lifted_graph, spelled_out
from twoheads.compiler.frontend.onnx.capture_whole import read_whole
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array, read_onnx
from twoheads.compiler.frontend.onnx.passes.dequantise import exact_activations
from twoheads.compiler.frontend.onnx.passes.fold import fold_onnx, graph_of
from twoheads.compiler.frontend.onnx.passes.measure import measure_onnx
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.program import Dim, Input
from twoheads.graphs.serialization.bundle_format import SourceIdentity

__all__ = ["OnnxOriginal", "load_onnx_original"]


@dataclass(frozen=True, slots=True)
class OnnxOriginal:
    """A file as it is: its inputs bound, nothing else done to it.

    Attributes:
        identity: What it is.
        graph: Its operators.
        inputs: Its arguments.
        hidden, logits: Names of the results that a bundle gives; the latter may be ``None``.
        plain: The same operators, those of ONNX Runtime written out, to be evaluated the other way.
        types: Of the values of ``plain``.
    """

    identity: SourceIdentity
    graph: OnnxGraph
    inputs: tuple[Input, ...]
    hidden: str
    logits: str | None
    plain: OnnxGraph
    types: Mapping[str, TensorType]

    @property
    def pooling(self) -> None:
        """A file does not say how an embedding is made of hidden states."""
        return None

    def hidden_and_logits(
        self, given: Mapping[str, Array], positions: Array | None, implementation: str, cut: int | None = None
    ) -> tuple[Array, Array | None]:
        """Runs the original over whole inputs.

        Args:
            given: Arguments by name, batch 1.
            positions: int64 ``[p]``: where logits are wanted; everywhere by default.
            implementation: ``fused`` (optimised) or ``plain`` (every product in two parts).
            cut: Of ``plain``: the first part is the ``cut``-th of the inner dimension; by default a half.

        Returns:
            Last hidden states ``[n, width]`` and logits ``[p, classes]``, ``[1, classes]`` where they are one row for
            the whole input, ``None`` without logits.
        """
        lengths = {
            entry.value.axis: given[entry.value.name].shape[entry.value.token_axis]
            for entry in self.inputs
            if entry.value.axis is not None
        }
        names = [self.hidden, *([self.logits] if self.logits else [])]
        if implementation == "plain":
            graph = replace(self.plain, nodes=tuple(_cut_products(self.plain, self.types, lengths, cut or 2)))
            results = graph.run(names, given, lengths)
        else:
            results = self.graph.run(names, given, lengths, optimise=True)
        hidden = results[self.hidden].reshape(-1, results[self.hidden].shape[-1])
        if self.logits is None:
            return hidden, None
        logits = results[self.logits].reshape(-1, results[self.logits].shape[-1])
        rows = self.types[self.logits].axis is not None
        return hidden, logits[positions] if rows and positions is not None else logits


def load_onnx_original(
    path: str | Path, results: Sequence[str] = (), masks: Mapping[str, str] | None = None, *, whole: bool = False
) -> OnnxOriginal:
    """Reads a file again, to be run as it is.

    Args:
        path: The file.
        results: As for ``capture_onnx``.
        masks: Likewise.
        whole: Its bundle is one engine of the file's only input size.

    Raises:
        CompileError: As ``capture_onnx``, which says what the arguments are.
    """
    if whole:
        return _whole_original(path, results)
    captured = capture_onnx(path, results, masks)
    names = [captured.graph.hidden, *([captured.graph.logits] if captured.graph.logits else [])]
    bound = bind_inputs(read_onnx(path), masks)
    nodes = [exact_activations(node) for node in bound.file.nodes]
    graph = graph_of(bound.file.opsets, nodes, bound.file.weights, names)
    graph = graph if bound.fixed is None else lifted_graph(bound, graph, names)
    made = {output for node in graph.nodes for output in node.outputs}
    if missing := [name for name in names if name not in made]:
        raise CompileError(
            str(path), f"its result {missing[0]} is no value of the file", "name hidden states that the file outputs"
        )
    plain = spelled_out(graph, bound.arguments, names, str(path))
    types = measure_onnx(plain, bound.arguments, names, str(path)).types
    hidden, logits = captured.graph.hidden, captured.graph.logits
    return OnnxOriginal(captured.identity, graph, bound.arguments, hidden, logits, plain, types)


def _whole_original(path: str | Path, results: Sequence[str]) -> OnnxOriginal:
    found = read_whole(path, results)
    nodes = tuple(replace(node, proto=exact_activations(node.proto)) for node in found.graph.nodes)
    graph, names = replace(found.graph, nodes=nodes), found.outputs
    plain = spelled_out(fold_onnx(graph, names), found.inputs, names, str(path))
    types = measure_onnx(plain, found.inputs, names, str(path)).types
    return OnnxOriginal(found.file.identity, graph, found.inputs, found.hidden, found.logits, plain, types)


def _cut_products(
    graph: OnnxGraph, types: Mapping[str, TensorType], lengths: Mapping[str, int], cut: int
) -> Iterator[OnnxNode]:
    """The nodes with each matrix product as the sum of two."""

    def size(dim: Dim) -> int:
        return axis_length(dim, lengths) if isinstance(dim, str) else dim

    for node in graph.nodes:
        proto = node.proto
        if proto.op_type not in ("MatMul", "Gemm") or node.constants or node.sizes:
            yield node
            continue
        shapes = [types[name].shape if name in types else graph.weights[name].shape for name in proto.input[:2]]
        flags = {entry.name: entry.i for entry in proto.attribute}
        axes = (-2 if flags.get("transA") else -1, -1 if flags.get("transB") else -2)
        if min(map(len, shapes)) < 2 or (width := size(shapes[0][axes[0]])) < 2:
            yield node
        else:
            yield from _two_products(node, axes, max(1, width // cut), width)


def _two_products(node: OnnxNode, axes: tuple[int, int], at: int, width: int) -> Iterator[OnnxNode]:
    proto, name = node.proto, node.outputs[0]
    products: list[str] = []
    for begin, end in ((0, at), (at, width)):
        parts: list[str] = []
        for side, axis in enumerate(axes):
            parts.append(f"{name}.{side}.{begin}")
            cut = {1: np.array([begin]), 2: np.array([end]), 3: np.array([axis])}
            operands = [proto.input[side], "begin", "end", "axis"]
            yield OnnxNode(helper.make_node("Slice", operands, [parts[-1]]), node.layer, constants=cut)
        product = onnx.NodeProto()
        product.CopyFrom(proto)
        # A Gemm adds its third operand once.
        product.input[0], product.input[1] = parts
        if begin:
            del product.input[2:]
        products.append(f"{name}.from.{begin}")
        product.output[0], product.name = products[-1], ""
        yield OnnxNode(product, node.layer)
    yield OnnxNode(helper.make_node("Add", products, [name]), node.layer)
