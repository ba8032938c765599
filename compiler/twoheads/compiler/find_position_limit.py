"""Finds how long an input the model itself can take: where a learned position table ends."""

from __future__ import annotations

from typing import Any

import torch

from twoheads.compiler.fx_program import FxProgram
from twoheads.compiler.source_graph import SourceGraph, TokenwiseNode
from twoheads.graphs.program import Limit

__all__ = ["find_position_limit"]

_LOOK_UPS = ("aten.embedding.default", "aten.index_select.default", "aten.gather.default")


def find_position_limit(graph: SourceGraph, program: FxProgram) -> Limit | None:
    """The longest input whose positions all fall into the model's tables, or ``None`` if no table bounds it."""
    positional = {entry.value.name for entry in graph.inputs if entry.source == "positions"}
    constant = set(graph.weights)
    limits: list[Limit] = []
    for node in graph.nodes:
        if not isinstance(node, TokenwiseNode):
            continue
        if all(name in constant for name in node.inputs):
            constant.add(node.name)
            continue
        if node.op.startswith(_LOOK_UPS) and len(node.inputs) == 2:
            table, index = node.inputs
            if table in constant and index in positional:
                limits.append(_limit(program, node, table, index, limits))
        if all(name in constant or name in positional for name in node.inputs):
            positional.add(node.name)
    if graph.max_length is not None and all(limit.length > graph.max_length for limit in limits):
        limits.append(Limit(graph.max_length, "a table in its graph"))
    # Of equal limits the last: a buffer of row numbers comes before the learned table that it indexes.
    return min(reversed(limits), key=lambda limit: limit.length, default=None)


def _limit(program: FxProgram, node: TokenwiseNode, table: str, index: str, known: list[Limit]) -> Limit:
    fx_node: Any = program.nodes[node.name]
    operand: Any = fx_node.args[0]
    axis = int(fx_node.args[1]) if "embedding" not in node.op else 0
    rows = int(operand.meta["val"].shape[axis])
    longest = min([limit.length for limit in known] + [rows + 64])
    inputs = program.example_inputs(longest, torch.Generator().manual_seed(0))
    fx_index = fx_node.args[1] if "embedding" in node.op else fx_node.args[2]
    values = program.evaluate((fx_index.name,), inputs)[fx_index.name]
    outside = torch.nonzero((values.flatten() >= rows) | (values.flatten() < 0)).flatten()
    length = int(outside[0]) if outside.numel() else longest
    return Limit(length, f"its table {table} of {rows} rows")
