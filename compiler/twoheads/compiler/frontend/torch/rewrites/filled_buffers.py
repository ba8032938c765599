"""Buffers that a model allocates and then fills piece by piece become concatenations of the pieces.

Multi-head latent attention writes the rotated and the other part of its keys into a new tensor. Until they are written
its numbers are anything, so that nothing could be said of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = ["concatenate_filled_buffers"]

aten = torch.ops.aten

_EMPTY: tuple[Any, ...] = (aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default)


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    source: fx.Node


def concatenate_filled_buffers(graph: fx.Graph) -> None:
    """Rewrites ``graph`` in place; a buffer that is not filled wholly stays as it is."""
    _drop_copies(graph)
    for node in list(graph.nodes):
        if node.target is not aten.slice_scatter.default or _filled_further(node):
            continue
        pieces = _pieces(node)
        if pieces is not None:
            with graph.inserting_before(node):
                whole = graph.call_function(aten.cat.default, ([piece.source for piece in pieces], _axis(node)))
            whole.meta = dict(node.meta)
            node.replace_all_uses_with(whole)


def _drop_copies(graph: fx.Graph) -> None:
    """What is written over the whole of a tensor of the same shape and type is the result."""
    for node in list(graph.nodes):
        if node.target is not aten.copy.default:
            continue
        written, made = node.args[1], node.meta["val"]
        if not isinstance(written, fx.Node):
            continue
        value = written.meta["val"]
        if str(value.shape) == str(made.shape) and value.dtype == made.dtype:
            node.replace_all_uses_with(written)


def _filled_further(node: fx.Node) -> bool:
    return any(user.target is aten.slice_scatter.default and user.args[0] is node for user in node.users)


def _axis(node: fx.Node) -> int:
    axis: Any = node.args[2] if len(node.args) > 2 else 0
    return int(axis) % int(node.meta["val"].ndim)


def _pieces(node: fx.Node) -> list[_Piece] | None:
    """What the buffer is filled with, in order; ``None`` if that leaves gaps, overlaps, or is not known."""
    axis, size = _axis(node), node.meta["val"].shape[_axis(node)]
    if not isinstance(size, int):
        return None
    found: list[_Piece] = []
    current: Any = node
    while current.target is aten.slice_scatter.default and _axis(current) == axis:
        piece = _piece(current, size)
        if piece is None:
            return None
        found.append(piece)
        current = current.args[0]
        if not isinstance(current, fx.Node):
            return None
    found.sort(key=lambda piece: piece.start)
    ends = [piece.end for piece in found]
    together = [piece.start for piece in found] == [0, *ends[:-1]] and ends[-1] == size
    return found if together and current.target in _EMPTY else None


def _piece(node: fx.Node, size: int) -> _Piece | None:
    arguments: list[Any] = [*node.args, None, None, None]
    source, start, end, step = arguments[1], arguments[3], arguments[4], arguments[5]
    first, last = 0 if start is None else start, size if end is None else end
    whole_numbers = isinstance(first, int) and isinstance(last, int)
    if not whole_numbers or step not in (None, 1) or not isinstance(source, fx.Node):
        return None
    ends = (min(bound + size if bound < 0 else bound, size) for bound in (first, last))
    return _Piece(next(ends), next(ends), source)
