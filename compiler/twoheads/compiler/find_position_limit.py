"""Finds how long an input the model itself can take: where a learned position table ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from twoheads.compiler.fx_program import FxProgram
from twoheads.compiler.source_graph import SourceGraph, TokenwiseNode
from twoheads.graphs.program import Limit

__all__ = ["find_position_limit"]

_LOOK_UPS = ("aten.embedding.default", "aten.index_select.default", "aten.gather.default", "aten.index.Tensor")


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
                limits.extend(_limits(program, node, table, limits))
        if all(name in constant or name in positional for name in node.inputs):
            positional.add(node.name)
    if graph.max_length is not None and all(limit.length > graph.max_length for limit in limits):
        limits.append(Limit(graph.max_length, "a table in its graph"))
    # Of equal limits the last: a buffer of row numbers comes before the learned table that it indexes.
    return min(reversed(limits), key=lambda limit: limit.length, default=None)


def _limits(program: FxProgram, node: TokenwiseNode, table: str, known: list[Limit]) -> Iterator[Limit]:
    """The length at which the look-up leaves its table, if it does; an index may also be clamped or wrap around."""
    axis, fx_index = _axis_and_index(program.nodes[node.name])
    fx_table: Any = program.nodes[node.name].args[0]
    rows = int(fx_table.meta["val"].shape[axis])
    # Far enough to see an index that grows by one in four positions; not beyond where an earlier table ends.
    longest = min([limit.length for limit in known] + [4 * rows + 64])
    inputs = program.example_inputs(longest, torch.Generator().manual_seed(0))
    values = program.evaluate((fx_index.name,), inputs)[fx_index.name].flatten()
    outside = torch.nonzero((values >= rows) | (values < 0)).flatten()
    reason = f"its table {table} of {rows} rows"
    if outside.numel():
        yield Limit(int(outside[0]), reason)
    elif known and int(values[-1]) == rows - 1:  # both tables end here
        yield Limit(longest, reason)


def _axis_and_index(node: fx.Node) -> tuple[int, fx.Node]:
    """Which axis of its table a look-up cuts, and by which node."""
    arguments: Any = node.args
    if node.target is torch.ops.aten.embedding.default:
        return 0, arguments[1]
    if node.target is torch.ops.aten.index.Tensor:  # table[:, index] has the indices [None, index]
        axis = next(at for at, index in enumerate(arguments[1]) if index is not None)
        return axis, arguments[1][axis]
    return int(arguments[1]), arguments[2]
