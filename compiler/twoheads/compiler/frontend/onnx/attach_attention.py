"""Puts recognised attentions into an ONNX program: operands and results as ``[1, heads, tokens, head_dim]``.

Where the file keeps them in another layout, views are added around the attention. The file's own operators stay in the
program, so that it can still be evaluated; the source graph has the attention in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.ir.op_view import Arrangement, Move, RecognisedAttention
from twoheads.compiler.ir.source_graph import AttentionNode, TensorType

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
            nodes.append(node if self._renamed.keys().isdisjoint(node.outputs) else node.renamed({}, self._renamed))
            nodes += [new for name in node.outputs for new in self._after.get(name, ())]
        graph = replace(self._program.graph, nodes=tuple(nodes), weights=self._weights)
        return replace(self._program, graph=graph, types=self._types, views=self._views)

    def attach(self, found: RecognisedAttention) -> AttentionNode:
        """The node of one attention."""
        query, key, value = (self._operand(found, *operand) for operand in (found.query, found.key, found.value))
        type_ = TensorType(self._types[value].dtype, (*self._types[query].shape[:3], self._types[value].shape[3]))
        name = self._result(found, type_)
        self._types[name] = type_
        self._views[name] = (query, key, value)
        learned: dict[str, Array] = {}
        node = found.as_node(name, (query, key, value), type_, learned)
        self._weights |= learned
        self._types |= {name: TensorType("float32", array.shape) for name, array in learned.items()}
        return node

    def _operand(self, found: RecognisedAttention, source: str, arrangement: Arrangement) -> str:
        """The name of an operand in the attention's layout."""
        if arrangement == Arrangement():
            return source
        name = f"{source}.arranged{_suffix(arrangement)}"
        if name not in self._made:
            self._made.add(name)
            self._before.setdefault(found.output, []).extend(self._moved(source, name, arrangement.moves, found.layer))
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
            *self._moved(original, name, arrangement.undone(type_.shape), found.layer),
            *self._moved(name, output, arrangement.moves, found.layer),
        ]
        return name

    def _moved(self, source: str, name: str, moves: Sequence[Move], layer: str) -> list[OnnxNode]:
        """Nodes that make ``name`` of ``source``."""
        nodes: list[OnnxNode] = []
        for at, (kind, numbers) in enumerate(moves, start=1):
            result = name if at == len(moves) else f"{name}.{kind}"
            make = self._transpose if kind == "transposed" else self._reshape
            nodes.append(make(source, result, numbers, layer))
            source = result
        return nodes

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


def _suffix(arrangement: Arrangement) -> str:
    parts = (arrangement.permutation or (), arrangement.shape or ())
    return "".join(f".{'_'.join(str(number).replace('-', 'n') for number in part)}" for part in parts if part)
