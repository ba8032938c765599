"""Moves the arithmetic in front of a running sum or an argmax of whole numbers to the host, where those are computed.

``cumsum(ids != pad)`` would otherwise need an engine for the comparison alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from twoheads.compiler.frontend.torch.rows import sequence_ops as ops
from twoheads.graphs.program.sequence_operators import DTYPES

__all__ = ["move_to_host"]

aten = torch.ops.aten

_BINARY: Mapping[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: ops.add,
    aten.sub.Tensor: ops.sub,
    aten.mul.Tensor: ops.mul,
    aten.eq.Scalar: ops.equal,
    aten.eq.Tensor: ops.equal,
    aten.ne.Scalar: ops.not_equal,
    aten.ne.Tensor: ops.not_equal,
    aten.gt.Scalar: ops.greater,
    aten.gt.Tensor: ops.greater,
    aten.lt.Scalar: ops.less,
    aten.lt.Tensor: ops.less,
}
_PLAIN: Mapping[Any, Callable[..., Tensor]] = {
    aten.logical_and.default: ops.logical_and,
    aten.logical_or.default: ops.logical_or,
    aten.logical_not.default: ops.logical_not,
    aten.where.self: ops.where,
}
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default)


def move_to_host(graph: fx.Graph) -> dict[str, str]:
    """Rewrites ``graph``, in which rows are moved by sequence operators, in place; returns new names by old."""
    stack = [operand for node in graph.nodes for operand in _whole_number_operands(node)]
    seen: set[fx.Node] = set()
    renamed: dict[str, str] = {}
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function" or not _is_whole(node):
            continue
        seen.add(node)
        with graph.inserting_before(node):
            new = _on_host(graph, node)
        if new is None:
            continue
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        renamed[node.name] = new.name
        stack.extend(new.all_input_nodes)
    return renamed


def _whole_number_operands(node: fx.Node) -> list[fx.Node]:
    if node.target in (ops.cumsum, ops.argmax):
        return node.all_input_nodes
    return [node.all_input_nodes[1]] if node.target is ops.take_at and len(node.all_input_nodes) > 1 else []


def _is_whole(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and not value.dtype.is_floating_point and not value.dtype.is_complex


def _on_host(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The sequence operator that computes the same; ``None`` where there is none."""
    operands = cast("tuple[Any, ...]", node.args)
    if node.target in _CASTS and _is_whole(operands[0]):
        name = str(node.meta["val"].dtype).removeprefix("torch.")
        return graph.call_function(ops.cast, (operands[0],), {"to": DTYPES.index(name)}) if name in DTYPES else None
    if node.kwargs:
        return None
    if node.target in _PLAIN and all(map(_is_result, operands)):
        return graph.call_function(_PLAIN[node.target], operands)
    if node.target not in _BINARY or not _is_result(operands[0]):
        return None
    first, second = operands
    if _is_result(second):
        return graph.call_function(_BINARY[node.target], (first, second))
    if isinstance(second, int) and operands[0].meta["val"].dtype != torch.bool:
        return graph.call_function(_BINARY[node.target], (first,), {"value": int(second)})
    return None


def _is_result(operand: Any) -> bool:
    """Whether it holds whole numbers and is no weight, which sequence operators don't read."""
    return _is_whole(operand) and (operand.op != "placeholder" or not str(operand.name).startswith(("p_", "b_", "c_")))
