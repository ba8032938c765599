"""Puts recognised attentions into a captured torch graph: operands and results as ``[1, heads, tokens, head_dim]``.

Where the model keeps them in another layout, views are added around the attention. The model's own operators stay in
the graph, so that it can still be evaluated; the source graph has the attention in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.program import FxProgram
from twoheads.compiler.ir.op_view import Arrangement, Array, RecognisedAttention
from twoheads.compiler.ir.source_graph import AttentionNode, TensorType

__all__ = ["attach_attention_fx"]

_PERMUTE, _VIEW = torch.ops.aten.permute.default, torch.ops.aten.reshape.default


def attach_attention_fx(
    graph: fx.Graph, program: FxProgram, found: Sequence[RecognisedAttention]
) -> tuple[dict[str, AttentionNode], dict[str, Tensor]]:
    """Adds views to the graph; returns the attentions by the name of the node each replaces, and their weights."""
    attentions: dict[str, AttentionNode] = {}
    weights: dict[str, Tensor] = {}
    for attention in found:
        made = _attach(graph, program, attention, weights)
        attentions[made.name] = made
    return attentions, weights


def _attach(
    graph: fx.Graph, program: FxProgram, found: RecognisedAttention, weights: dict[str, Tensor]
) -> AttentionNode:
    nodes = {program.source_name(node): node for node in graph.nodes}
    output = nodes[found.output]
    with graph.inserting_before(output):
        query, key, value = (
            _arranged(graph, nodes[name], arrangement) for name, arrangement in (found.query, found.key, found.value)
        )
    result = _result(graph, output, found.output_arrangement, (query, value))
    heads = int(query.meta["val"].shape[1])
    return AttentionNode(
        name=result.name,
        query=program.source_name(query),
        key=program.source_name(key),
        value=program.source_name(value),
        type=TensorType(str(result.meta["val"].dtype).removeprefix("torch."), program.axes.shape(result.meta["val"])),
        mask=found.mask,
        scale=found.scale,
        softcap=found.softcap,
        sinks=_weight(weights, f"{found.output}.sinks", found.sinks, heads),
        bias_table=_weight(weights, f"{found.bias_source}.table", found.bias_table, heads),
        bias_slope=_weight(weights, f"{found.bias_source}.slope", found.bias_slope, heads),
        layer=found.layer,
    )


def _weight(weights: dict[str, Tensor], name: str, array: Array | None, heads: int) -> str | None:
    if array is None:
        return None
    weights[name] = torch.from_numpy(np.array(np.broadcast_to(array, (heads, *array.shape[1:])), np.float32))
    return name


def _arranged(graph: fx.Graph, node: fx.Node, arrangement: Arrangement) -> fx.Node:
    if arrangement.permutation is not None:
        node = _call(graph, _PERMUTE, node, arrangement.permutation)
    if arrangement.shape is not None:
        node = _call(graph, _VIEW, node, arrangement.shape)
    return node


def _result(graph: fx.Graph, output: fx.Node, arrangement: Arrangement, operands: tuple[fx.Node, fx.Node]) -> fx.Node:
    """The attention's own result: in another layout than the model's, both are views of what the model computes."""
    if arrangement == Arrangement():
        return output
    query, value = (operand.meta["val"] for operand in operands)
    shape = (1, int(query.shape[1]), -1, int(value.shape[3]))
    order = arrangement.permutation or (0, 1, 2, 3)
    readers = list(output.users)
    with graph.inserting_after(output):
        flat = _call(graph, _VIEW, output, tuple(shape[at] for at in order))
    with graph.inserting_after(flat):
        result = _call(graph, _PERMUTE, flat, tuple(order.index(at) for at in range(4)))
    with graph.inserting_after(result):
        last = result if arrangement.permutation is None else _call(graph, _PERMUTE, result, order)
    if arrangement.shape is not None:
        with graph.inserting_after(last):
            last = _call(graph, _VIEW, last, arrangement.shape)
    for reader in readers:
        reader.replace_input_with(output, last)
    return result


def _call(graph: fx.Graph, target: Any, operand: fx.Node, numbers: Sequence[int]) -> fx.Node:
    value = operand.meta["val"]
    node = graph.call_function(target, (operand, list(numbers)))
    with value.fake_mode:
        node.meta["val"] = target(value, list(numbers))
    node.meta["nn_module_stack"] = operand.meta.get("nn_module_stack")
    return node
