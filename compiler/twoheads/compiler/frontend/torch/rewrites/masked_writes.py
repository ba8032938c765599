"""Writes under a condition, ``x[condition] = number``, become selections between the number and ``x``.

A wrapper puts an ordinary token in the place of its image's tokens. As a write at the positions that a condition finds
its shape would depend on the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["select_masked_writes"]

aten = torch.ops.aten


def select_masked_writes(graph: fx.Graph) -> None:
    """Rewrites ``graph`` in place; writes at indices, and of more than one number, stay as they are."""
    for node in list(graph.nodes):
        if node.target not in (aten.index_put.default, aten.index_put_.default):
            continue
        arguments: list[Any] = [*node.args, False]
        target, indices, value, accumulates = arguments[:4]
        if accumulates or len(indices) != 1 or value.meta["val"].ndim:
            continue
        condition = indices[0]
        if condition.meta["val"].dtype != torch.bool or not _covers(condition, target):
            continue
        with graph.inserting_before(node):
            selected = graph.call_function(aten.where.self, (condition, value, target))
        selected.meta = dict(node.meta)
        node.replace_all_uses_with(selected)


def _covers(condition: fx.Node, target: fx.Node) -> bool:
    """Whether there is one condition for every number."""
    return str(condition.meta["val"].shape) == str(target.meta["val"].shape)
