"""Rewrites of a freshly exported FX graph: drop what has no effect, and read positions from an input.

A block must know which positions it holds, so a graph may not create them: ``arange(n)`` becomes the input
``positions``, and a table cut to the length, ``table[:n]``, becomes a look-up of ``table`` at ``positions``. Each token
axis has positions of its own.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import fx

from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.fx.fx_program import is_scalar
from twoheads.graphs.program.program import TOKENS

__all__ = ["affine_positions", "generated_input", "generated_source", "normalize_fx"]

_GENERATED = "twoheads_input"
"""Key of a placeholder's meta data: the source of an input that the model does not have itself, and its axis."""

aten = torch.ops.aten

_ARANGES: tuple[Any, ...] = (aten.arange.default, aten.arange.start, aten.arange.start_step)
_FILLED: tuple[Any, ...] = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
_CHECKS = ("_assert_tensor_metadata", "sym_constrain_range", "_assert_scalar", "_assert_async")


def normalize_fx(graph: fx.Graph, axes: AxisNames) -> None:
    """Rewrites ``graph`` in place."""
    _erase_checks(graph)
    for node in list(graph.nodes):
        if node.target in _ARANGES:
            _rewrite_arange(graph, node, axes)
        elif node.target is aten.slice.Tensor:
            _rewrite_table_slice(graph, node, axes)
        elif node.target in _FILLED:
            _rewrite_filled(graph, node, axes)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def _erase_checks(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and any(check in str(node.target) for check in _CHECKS):
            graph.erase_node(node)


def affine_positions(
    graph: fx.Graph, node: fx.Node, start: int, step: int, axes: AxisNames, source: str = "positions"
) -> fx.Node:
    """``start + step * positions`` (int64 ``[n]``), computed before ``node``, whose last axis is a token axis."""
    example = cast("torch.Tensor", node.meta["val"])
    result = _positions(graph, example.shape[-1], example, axes, source)
    with graph.inserting_before(node):
        for target, operand, neutral in ((aten.mul.Tensor, step, 1), (aten.add.Tensor, start, 0)):
            if operand != neutral:
                value = result.meta["val"]
                result = graph.call_function(target, (result, operand))
                result.meta = dict(node.meta) | {"val": value}
    return result


def generated_input(graph: fx.Graph, source: str, axis: str, value: torch.Tensor) -> fx.Node:
    """The placeholder of an input that the run makes itself: ``positions`` along ``axis``, or its ``length``.

    Args:
        graph: Where it is looked for, and added if it is not there.
        source: As in :class:`twoheads.graphs.program.program.Input`; with the axis it makes the name.
        axis: A token axis.
        value: An example of the shape and dtype.
    """
    for found in graph.nodes:
        if found.op == "placeholder" and found.meta.get(_GENERATED) == (source, axis):
            return cast("fx.Node", found)
    name = source if axis == TOKENS else f"{source}_{re.sub(r'[^a-z0-9]', '_', axis)}"
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.placeholder(name)
    node.meta.update({"val": value, _GENERATED: (source, axis)})
    return node


def generated_source(node: fx.Node) -> tuple[str, str] | None:
    """Source and axis of a placeholder made by :func:`generated_input`; ``None`` for every other node."""
    return cast("tuple[str, str] | None", node.meta.get(_GENERATED))


def _positions(
    graph: fx.Graph, length: int | torch.SymInt, example: torch.Tensor, axes: AxisNames, source: str = "positions"
) -> fx.Node:
    value = example.new_empty((length,), dtype=torch.int64)
    return generated_input(graph, source, str(axes.dim(length)), value)


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


def _rewrite_arange(graph: fx.Graph, node: fx.Node, axes: AxisNames) -> None:
    value = node.meta["val"]
    if not axes.is_axis(value.shape[0]):
        return
    start = 0 if node.target is aten.arange.default else _number(node.args[0])
    step = _number(node.args[2]) if node.target is aten.arange.start_step else 1
    if start is None or step is None:
        return
    result = affine_positions(graph, node, start, step, axes)
    with graph.inserting_before(node):
        if value.dtype != torch.int64:
            result = graph.call_function(aten.to.dtype, (result, value.dtype))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _rewrite_filled(graph: fx.Graph, node: fx.Node, axes: AxisNames) -> None:
    """What is filled with one number and has one size is a constant, whatever tensor it was made like."""
    value, sizes = node.meta["val"], axes.shape(node.meta["val"])
    known: dict[Any, Any] = {aten.new_zeros.default: 0, aten.new_ones.default: 1}
    number: Any = known[node.target] if node.target in known else node.args[2]
    if any(isinstance(size, str) for size in sizes) or not isinstance(number, int | float):
        return
    with graph.inserting_before(node):
        new = graph.call_function(aten.full.default, (list(sizes), number), {"dtype": value.dtype})
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _rewrite_table_slice(graph: fx.Graph, node: fx.Node, axes: AxisNames) -> None:
    table, axis = node.args[0], cast("int", node.args[1]) if len(node.args) > 1 else 0
    start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
    end = node.args[3] if len(node.args) > 3 else None
    if not isinstance(table, fx.Node) or is_scalar(table) or _number(end) is not None or _number(start) is None:
        return
    value, whole = node.meta["val"], axes.shape(table.meta["val"])
    axis %= len(whole)
    if isinstance(whole[axis], str) or not axes.is_axis(value.shape[axis]):
        return
    index = _positions(graph, value.shape[axis], value, axes)
    if offset := _number(start):
        with graph.inserting_before(node):
            index = graph.call_function(aten.add.Tensor, (index, offset))
            index.meta = dict(node.meta) | {"val": value.new_empty((value.shape[axis],), dtype=torch.int64)}
    _replace(graph, node, aten.index_select.default, (table, axis, index))
