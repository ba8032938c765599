"""Writes under a condition, ``x[condition] = number``, become selections between the number and ``x``.

A wrapper puts an ordinary token in the place of its image's tokens, or a vector in the place of one token's embedding.
As a write at the positions that a condition finds its shape would depend on the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["places_by_content", "select_masked_writes"]

aten = torch.ops.aten

WRITES = (aten.index_put.default, aten.index_put_.default)


def select_masked_writes(graph: fx.Graph) -> None:
    """Rewrites ``graph`` in place; writes at indices, and of another number at every place, stay as they are."""
    for node in list(graph.nodes):
        if node.target not in WRITES:
            continue
        arguments: list[Any] = [*node.args, False]
        target, indices, value, accumulates = arguments[:4]
        if accumulates or not places_by_content(node) or len(indices) != 1 or not _covers(indices[0], target):
            continue
        condition = indices[0]
        within = target.meta["val"].ndim - condition.meta["val"].ndim  # what is written has dimensions of its own
        if value.meta["val"].ndim > within:
            continue
        with graph.inserting_before(node):
            for _ in range(within):
                wider = graph.call_function(aten.unsqueeze.default, (condition, -1))
                wider.meta = {**condition.meta, "val": condition.meta["val"].unsqueeze(-1)}
                condition = wider
            selected = graph.call_function(aten.where.self, (condition, value, target))
        selected.meta = dict(node.meta)
        node.replace_all_uses_with(selected)
        graph.erase_node(node)


def places_by_content(node: fx.Node) -> bool:
    """Whether the node writes where a condition holds."""
    if node.target not in WRITES:
        return False
    indices: Any = node.args[1]
    return any(index is not None and index.meta["val"].dtype == torch.bool for index in indices)


def _covers(condition: fx.Node, target: fx.Node) -> bool:
    """Whether there is one condition for every number, or for every row of the target's last dimensions."""
    shape = condition.meta["val"].shape
    return str(shape) == str(target.meta["val"].shape[: len(shape)])
