"""Rewrites of a freshly exported FX graph: drop what has no effect, and read positions from an input.

A block must know which positions it holds, so a graph may not create them: ``arange(n)`` becomes the input
``positions``, and a table cut to the length, ``table[:n]``, becomes a look-up of ``table`` at ``positions``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from twoheads.compiler.fx_program import is_scalar, tensor_shape
from twoheads.graphs.program import TOKENS

__all__ = ["POSITIONS", "affine_positions", "normalize_fx"]

POSITIONS = "positions"
"""Name of the placeholder of position numbers, int64 ``[n]``."""

aten = torch.ops.aten

_ARANGES: tuple[Any, ...] = (aten.arange.default, aten.arange.start, aten.arange.start_step)
_CHECKS = ("_assert_tensor_metadata", "sym_constrain_range", "_assert_scalar", "_assert_async")


def normalize_fx(graph: fx.Graph, symbols: frozenset[str]) -> None:
    """Rewrites ``graph`` in place."""
    _erase_checks(graph)
    for node in list(graph.nodes):
        if node.target in _ARANGES:
            _rewrite_arange(graph, node, symbols)
        elif node.target is aten.slice.Tensor:
            _rewrite_table_slice(graph, node, symbols)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def _erase_checks(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and any(check in str(node.target) for check in _CHECKS):
            graph.erase_node(node)


def affine_positions(graph: fx.Graph, node: fx.Node, start: int, step: int) -> fx.Node:
    """``start + step * positions`` (int64 ``[n]``), computed before ``node``, whose last axis has ``n`` entries."""
    example = cast("torch.Tensor", node.meta["val"])
    result = _positions(graph, cast("torch.SymInt", example.shape[-1]), example)
    with graph.inserting_before(node):
        for target, operand, neutral in ((aten.mul.Tensor, step, 1), (aten.add.Tensor, start, 0)):
            if operand != neutral:
                value = result.meta["val"]
                result = graph.call_function(target, (result, operand))
                result.meta = dict(node.meta) | {"val": value}
    return result


def _positions(graph: fx.Graph, length: torch.SymInt, example: torch.Tensor) -> fx.Node:
    for found in graph.nodes:
        if found.op == "placeholder" and found.name == POSITIONS:
            return cast("fx.Node", found)
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        node = graph.placeholder(POSITIONS)
    node.meta["val"] = example.new_empty((length,), dtype=torch.int64)
    return node


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _number(argument: Any) -> int | None:
    """A size argument as a number; ``None`` if it depends on the length."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
    return value if isinstance(value, int) else None


def _rewrite_arange(graph: fx.Graph, node: fx.Node, symbols: frozenset[str]) -> None:
    value = node.meta["val"]
    if tensor_shape(value, symbols) != (TOKENS,):
        return
    start = 0 if node.target is aten.arange.default else _number(node.args[0])
    step = _number(node.args[2]) if node.target is aten.arange.start_step else 1
    if start is None or step is None:
        return
    result = affine_positions(graph, node, start, step)
    with graph.inserting_before(node):
        if value.dtype != torch.int64:
            result = graph.call_function(aten.to.dtype, (result, value.dtype))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _rewrite_table_slice(graph: fx.Graph, node: fx.Node, symbols: frozenset[str]) -> None:
    table, axis = node.args[0], cast("int", node.args[1]) if len(node.args) > 1 else 0
    start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
    end = node.args[3] if len(node.args) > 3 else None
    if not isinstance(table, fx.Node) or is_scalar(table) or _number(end) is not None or _number(start) is None:
        return
    cut, whole = tensor_shape(node.meta["val"], symbols), tensor_shape(table.meta["val"], symbols)
    axis %= len(whole)
    if isinstance(whole[axis], str) or cut[axis] != TOKENS:
        return
    value = node.meta["val"]
    index = _positions(graph, value.shape[axis], value)
    if offset := _number(start):
        with graph.inserting_before(node):
            index = graph.call_function(aten.add.Tensor, (index, offset))
            index.meta = dict(node.meta) | {"val": value.new_empty((value.shape[axis],), dtype=torch.int64)}
    _replace(graph, node, aten.index_select.default, (table, axis, index))
