"""Captures a model of one input size as it is: one region, whose results are spread as rows; nothing is tiled.

Convolutions, windows on a grid and pyramids leave no axis to cut along, and some attentions (Funnel's, Nystromformer's)
no blocks of tokens. But nothing needs to be cut where the input has one size, or is given one (``length``): the whole
model is an engine of a fixed shape. So none of our hooks and replacements is in the library's
place, and attention is the products and the softmax that its own eager code writes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload

from twoheads.compiler.frontend.torch.export_source import export_source
from twoheads.compiler.frontend.torch.exported_parts import (
    read_outputs,
    read_program,
    require_no_chance,
    require_weights,
    tokenwise_node,
)
from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.fx.fx_program import FxProgram, is_scalar
from twoheads.compiler.frontend.torch.fx.normalize import normalize_fx
from twoheads.compiler.frontend.torch.fx.view import layer_of
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.frontend.torch.rewrites.complex_pairs import pair_complex_numbers
from twoheads.compiler.frontend.torch.rewrites.filled_buffers import concatenate_filled_buffers
from twoheads.compiler.frontend.torch.rewrites.masked_writes import places_by_content, select_masked_writes
from twoheads.compiler.frontend.torch.rows import sequence_ops as ops
from twoheads.compiler.ir.source_graph import Node, SequenceNode, SourceGraph, TensorType, needed_nodes, place_of
from twoheads.compiler.ir.source_program import Captured
from twoheads.graphs.errors import CompileError

__all__ = ["capture_whole"]

ROWS = 1
"""The dimension of the rows in a whole model's results."""


def capture_whole(source: LoadedSource) -> Captured:
    """Captures a model that was loaded to be whole.

    Raises:
        CompileError: The model can't be exported, draws random numbers, or has a value whose size its input decides.
    """
    exported = export_source(source)
    graph, axes = exported.graph_module.graph, AxisNames({})
    concatenate_filled_buffers(graph)
    select_masked_writes(graph)
    pair_complex_numbers(graph)
    normalize_fx(graph, axes)
    outputs = read_outputs(exported, graph)
    spread = _spread(graph, outputs["hidden"])
    _require_engine_operators(graph)
    program = read_program(exported, graph, source, axes)
    nodes = needed_nodes(_nodes(program, spread), [spread.name, *outputs.values()])
    captured = SourceGraph(
        name=source.identity.name,
        inputs=program.inputs,
        weights={name: axes.type(tensor) for name, tensor in program.weights.items()},
        nodes=nodes,
        hidden=spread.name,
        logits=outputs.get("logits"),
    )
    require_no_chance(captured)
    require_weights(source, {name for node in nodes for name in node.inputs})
    return Captured(captured, program, source.identity)


def _require_engine_operators(graph: fx.Graph) -> None:
    """Refuses the library's own operators, and values as long as the input says: an engine's shapes are fixed."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace == "transformers":
            raise CompileError(
                place_of(layer_of(node), node.name),
                f"computes by {node.target}, an operator of transformers that no engine has",
                "leave --lowering whole out: by blocks, experts are products",
            )
        if places_by_content(node):
            raise CompileError(
                place_of(layer_of(node), node.name),
                "writes as many numbers as a condition on its input finds, and an engine's shapes are fixed",
                "write torch.where(condition, new, old)",
            )
        value = node.meta.get("val")
        sizes = cast("tuple[int | torch.SymInt, ...]", value.shape) if isinstance(value, torch.Tensor) else ()
        if any(isinstance(size, torch.SymInt) for size in sizes):
            raise CompileError(
                place_of(layer_of(node), node.name),
                f"makes a value {list(sizes)}, whose size depends on what the input says",
                "compile a part of it whose values have fixed sizes",
            )


def _spread(graph: fx.Graph, name: str) -> fx.Node:
    """The rows of the result ``name [1, rows, width]`` as a value along a token axis, as every program ends."""
    hidden = next(node for node in graph.nodes if node.name == name)
    with graph.inserting_after(hidden):
        spread = graph.call_function(ops.concat, (hidden,), {"axis": ROWS})
    spread.meta = dict(hidden.meta)
    return spread


def _nodes(program: FxProgram, spread: fx.Node) -> list[Node]:
    """Every operator, in order, and ``spread`` with the one axis that the program has."""
    nodes: list[Node] = []
    for node in program.nodes.values():
        if node is spread:
            (operand,) = node.all_input_nodes
            value: torch.Tensor = node.meta["val"]
            shape = tuple(str(size) if at == ROWS else int(size) for at, size in enumerate(value.shape))
            type_ = TensorType(program.axes.type(value).dtype, shape)
            nodes.append(SequenceNode(node.name, "concat", (operand.name,), type_, (("axis", ROWS),), ""))
        elif node.op == "call_function" and not is_scalar(node):
            nodes.append(tokenwise_node(program, node))
    return nodes
