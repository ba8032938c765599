"""Puts recognised attentions into an ONNX program: operands and results as ``[1, heads, tokens, head_dim]``.

Where the file keeps them in another layout, views are added around the attention. The file's own operators stay in the
program, so that it can still be evaluated; the source graph has the attention in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.program import OnnxProgram
from twoheads.compiler.ir.op_view import Arrangement, RecognisedAttention
from twoheads.compiler.ir.source_graph import AttentionNode, TensorType
from twoheads.graphs.program.program import Dim

__all__ = ["attach_attention"]


def attach_attention(
    program: OnnxProgram, found: Sequence[RecognisedAttention]
) -> tuple[OnnxProgram, dict[str, AttentionNode]]:
    """The program with the views, and an attention node by the name of each result that one replaces."""
    attacher = _Attacher(program)
    attentions = [attacher.attach(attention) for attention in found]
    return attacher.program(), {node.name: node for node in attentions}


class _Attacher:
    """Collects new nodes, to be placed before and after the nodes that make the attentions' results."""

    def __init__(self, program: OnnxProgram) -> None:
        self._program = program
        self._types = dict(program.types)
        self._weights = dict(program.weights)
        self._before: dict[str, list[OnnxNode]] = {}
        self._after: dict[str, list[OnnxNode]] = {}
        self._renamed: dict[str, str] = {}
        self._made: set[str] = set()
        self._views: dict[str, tuple[str, ...]] = {}

    def program(self) -> OnnxProgram:
        """The program with everything attached so far."""
        nodes: list[OnnxNode] = []
        for node in self._program.graph.nodes:
            nodes += [new for name in node.outputs for new in self._before.get(name, ())]
            nodes.append(self._with_renamed(node))
            nodes += [new for name in node.outputs for new in self._after.get(name, ())]
        graph = replace(self._program.graph, nodes=tuple(nodes), weights=self._weights)
        return replace(self._program, graph=graph, types=self._types, views=self._views)

    def attach(self, found: RecognisedAttention) -> AttentionNode:
        """The node of one attention."""
        query, key, value = (self._operand(found, *operand) for operand in (found.query, found.key, found.value))
        shape: tuple[Dim, ...] = (*self._types[query].shape[:3], self._types[value].shape[3])
        type_ = TensorType(self._types[value].dtype, shape)
        name = self._result(found, type_)
        self._types[name] = type_
        self._views[name] = (query, key, value)
        heads = int(shape[1])
        return AttentionNode(
            name=name,
            query=query,
            key=key,
            value=value,
            type=type_,
            mask=found.mask,
            scale=found.scale,
            softcap=found.softcap,
            sinks=self._weight(f"{found.output}.sinks", found.sinks, heads),
            bias_table=self._weight(f"{found.bias_source}.table", found.bias_table, heads),
            bias_slope=self._weight(f"{found.bias_source}.slope", found.bias_slope, heads),
            layer=found.layer,
        )

    def _weight(self, name: str, array: Array | None, heads: int) -> str | None:
        if array is None:
            return None
        full = np.ascontiguousarray(np.broadcast_to(array, (heads, *array.shape[1:])), np.float32)
        self._weights[name] = full
        self._types[name] = TensorType("float32", full.shape)
        return name

    def _operand(self, found: RecognisedAttention, source: str, arrangement: Arrangement) -> str:
        """The name of an operand in the attention's layout."""
        if arrangement == Arrangement():
            return source
        name = f"{source}.arranged{_suffix(arrangement)}"
        if name not in self._made:
            self._made.add(name)
            self._before.setdefault(found.output, []).extend(self._arranged(source, name, arrangement, found.layer))
        return name

    def _result(self, found: RecognisedAttention, type_: TensorType) -> str:
        """The attention's own result: in another layout than the file's, both are views of what the file computes."""
        output, arrangement = found.output, found.output_arrangement
        if arrangement == Arrangement():
            return output
        name, original = f"{output}.attention", f"{output}.original"
        self._renamed[output] = original
        self._types[original] = self._types[output]
        self._after[output] = [
            *self._undone(original, name, arrangement, type_.shape, found.layer),
            *self._arranged(name, output, arrangement, found.layer),
        ]
        return name

    def _arranged(self, source: str, name: str, arrangement: Arrangement, layer: str) -> list[OnnxNode]:
        """Nodes that arrange ``source`` as ``name``."""
        nodes: list[OnnxNode] = []
        if arrangement.permutation is not None:
            result = name if arrangement.shape is None else f"{name}.transposed"
            nodes.append(self._transpose(source, result, arrangement.permutation, layer))
            source = result
        if arrangement.shape is not None:
            nodes.append(self._reshape(source, name, arrangement.shape, layer))
        return nodes

    def _undone(
        self, source: str, name: str, arrangement: Arrangement, shape: Sequence[Dim], layer: str
    ) -> list[OnnxNode]:
        """Nodes that make a value of ``shape``, as ``name``, out of what ``arrangement`` has made of it."""
        permutation = arrangement.permutation or tuple(range(len(shape)))
        moved = [shape[at] for at in permutation]
        back = [permutation.index(at) for at in range(len(permutation))]
        sizes = [-1 if isinstance(dim, str) else dim for dim in moved]
        between = f"{name}.reshaped"
        return [self._reshape(source, between, sizes, layer), self._transpose(between, name, back, layer)]

    def _transpose(self, source: str, name: str, permutation: Sequence[int], layer: str) -> OnnxNode:
        type_ = self._types[source]
        self._types[name] = TensorType(type_.dtype, tuple(type_.shape[at] for at in permutation))
        return OnnxNode(helper.make_node("Transpose", [source], [name], perm=list(permutation)), layer)

    def _reshape(self, source: str, name: str, shape: Sequence[int], layer: str) -> OnnxNode:
        type_ = self._types[source]
        sizes = tuple(type_.axis or 1 if size == -1 else size for size in shape)
        self._types[name] = TensorType(type_.dtype, sizes)
        proto = helper.make_node("Reshape", [source, "shape"], [name])
        return OnnxNode(proto, layer, constants={1: np.array(shape, np.int64)})

    def _with_renamed(self, node: OnnxNode) -> OnnxNode:
        if self._renamed.keys().isdisjoint(node.outputs):
            return node
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        names = [self._renamed.get(name, name) for name in proto.output]
        del proto.output[:]
        proto.output.extend(names)
        return replace(node, proto=proto)


def _suffix(arrangement: Arrangement) -> str:
    parts = (arrangement.permutation or (), arrangement.shape or ())
    return "".join(f".{'_'.join(str(number).replace('-', 'n') for number in part)}" for part in parts if part)
