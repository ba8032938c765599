"""Rows of several heads in one dimension, ``[heads * n, width]``, become ``[n, heads, width]``.

A norm over each head's numbers is often written on the folded shape. Nothing changes but the shape, and a block can
then tell the tokens.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.fx.axes import AxisNames

__all__ = ["unfold_rows"]

aten = torch.ops.aten

_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def unfold_rows(graph: fx.Graph, axes: AxisNames) -> None:
    """Rewrites ``graph`` in place, or leaves it where something else is done with folded rows."""
    folds = {node: shape for node in graph.nodes if (shape := _heads_and_width(node, axes)) is not None}
    values = _values(graph, folds)
    if values is None:
        return
    for node, shape in folds.items():
        node.target, node.args = aten.reshape.default, (node.args[0], [-1, *shape])
    for node, value in values.items():
        node.meta["val"] = value


def _heads_and_width(node: fx.Node, axes: AxisNames) -> list[int] | None:
    """``[heads, width, ...]`` of a reshape from ``[1, n, ...]`` to ``[heads * n, width, ...]``."""
    if node.target not in _RESHAPES:
        return None
    source: tuple[Any, ...] = cast("fx.Node", node.args[0]).meta["val"].shape
    result: tuple[Any, ...] = node.meta["val"].shape
    at = next((at for at, size in enumerate(source) if not isinstance(size, int)), None)
    if at is None or isinstance(result[0], int) or axes.is_axis(result[0]) or not axes.is_axis(source[at]):
        return None
    inner, width = source[at + 1 :], result[1:]
    if any(size != 1 for size in source[:at]) or any(not isinstance(size, int) for size in (*inner, *width)):
        return None
    heads, rest = divmod(prod(inner), prod(width))
    return None if rest else [heads, *(int(size) for size in width)]


def _values(graph: fx.Graph, folds: dict[fx.Node, list[int]]) -> dict[fx.Node, Tensor] | None:
    """Examples of all results that change their shape; ``None`` if one of them is no longer what it was, unfolded."""
    values: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node in folds:
            source = cast("fx.Node", node.args[0])
            before: Any = source.meta["val"]
            with before.fake_mode:
                rows: Any = values.get(source, before)
                values[node] = rows.reshape([-1, *folds[node]])
        elif any(operand in values for operand in node.all_input_nodes):
            found = _recomputed(node, values)
            if found is None or not _is_unfolded(found, node.meta.get("val")):
                return None
            if node.target not in _RESHAPES:
                values[node] = found
    return values


def _recomputed(node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor | None:
    """The node's example from those of its operands, or ``None`` where they do not fit."""
    if node.op != "call_function":
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: values.get(operand, operand.meta["val"]))
    mode = next(cast("Any", values[operand]).fake_mode for operand in node.all_input_nodes if operand in values)
    try:
        with mode:
            found = cast("Any", node.target)(*args, **kwargs)
    except (RuntimeError, IndexError, ValueError):
        return None
    return found if isinstance(found, Tensor) else None


def _is_unfolded(found: Tensor, before: Any) -> bool:
    """Whether the shape is the former one, or that with its first dimension in parts."""
    if not isinstance(before, Tensor):
        return False
    extra = found.ndim - before.ndim
    if extra == 0:
        return str(found.shape) == str(before.shape)
    return extra > 0 and found.dtype == before.dtype and str(found.shape[extra + 1 :]) == str(before.shape[1:])
