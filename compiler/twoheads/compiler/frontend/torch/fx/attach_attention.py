"""Puts recognised attentions into a captured torch graph: operands and results as ``[1, heads, tokens, head_dim]``.

Where the model keeps them in another layout, views are added around the attention. The model's own operators stay in
the graph, so that it can still be evaluated; the source graph has the attention in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram
from twoheads.compiler.ir.op_view import Arrangement, Array, Move, RecognisedAttention
from twoheads.compiler.ir.source_graph import AttentionNode
from twoheads.graphs.program.program import Dim

__all__ = ["attach_attention_fx"]

_TARGETS: Mapping[str, Any] = {"transposed": torch.ops.aten.permute.default, "reshaped": torch.ops.aten.reshape.default}


def attach_attention_fx(
    graph: fx.Graph, program: FxProgram, found: Sequence[RecognisedAttention]
) -> tuple[dict[str, AttentionNode], dict[str, Tensor]]:
    """Adds views to the graph; returns the attentions by the name of the node each replaces, and their weights."""
    weights: dict[str, Array] = {}
    attentions = [_attach(graph, program, attention, weights) for attention in found]
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    return {attention.name: attention for attention in attentions}, tensors


def _attach(
    graph: fx.Graph, program: FxProgram, found: RecognisedAttention, weights: dict[str, Array]
) -> AttentionNode:
    nodes = {program.source_name(node): node for node in graph.nodes}
    output = nodes[found.output]
    with graph.inserting_before(output):
        query, key, value = (
            _moved(graph, nodes[name], arrangement.moves) for name, arrangement in (found.query, found.key, found.value)
        )
    shape = (*program.axes.shape(query.meta["val"])[:3], int(value.meta["val"].shape[3]))
    result = _result(graph, output, found.output_arrangement, shape)
    made = result.meta["val"]
    type_ = program.axes.type(made)
    operands = program.source_name(query), program.source_name(key), program.source_name(value)
    return found.as_node(result.name, operands, type_, weights)


def _moved(graph: fx.Graph, node: fx.Node, moves: Sequence[Move]) -> fx.Node:
    """``node`` after some moves, each right behind the one before it."""
    for kind, numbers in moves:
        value, target = node.meta["val"], _TARGETS[kind]
        new = graph.call_function(target, (node, list(numbers)))
        with value.fake_mode:
            new.meta["val"] = target(value, list(numbers))
        new.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        node = new
    return node


def _result(graph: fx.Graph, output: fx.Node, arrangement: Arrangement, shape: tuple[Dim, ...]) -> fx.Node:
    """The attention's own result: in another layout than the model's, both are views of what the model computes."""
    if arrangement == Arrangement():
        return output
    readers = list(output.users)
    with graph.inserting_before(output.next):
        result = _moved(graph, output, arrangement.undone(shape))
        last = _moved(graph, result, arrangement.moves)
    for reader in readers:
        reader.replace_input_with(output, last)
    return result
