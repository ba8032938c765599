"""Reads the number of tokens from an input where a graph computes with it: ``h.sum(1) / n``, RoPE by length.

Where a size is a number in arithmetic, not a shape, no block could know it. It becomes a value of one entry that is
computed from the input ``length``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import SymFloat, SymInt, Tensor, fx

from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.fx.normalize import generated_input

__all__ = ["lengths_from_sizes", "uses_length"]

aten = torch.ops.aten

_SHAPED = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "_unsafe_view.default", "reshape.default", "expand.default", "slice.Tensor", "sym_size.int",
        "new_empty.default", "new_zeros.default", "new_ones.default", "empty.memory_format", "zeros.default",
        "ones.default",
    )
)  # fmt: skip
"""Operators that take sizes only to shape their result."""

_ARITHMETIC: Mapping[Any, Any] = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.pow: aten.pow.Tensor_Tensor,
    torch.sym_max: aten.maximum.default,
    torch.sym_min: aten.minimum.default,
    torch.sym_float: aten.to.dtype,
    torch.sym_sqrt: aten.sqrt.default,
}
"""What a size is computed by, and the same on values of one entry."""

_TAKES_NUMBER: Mapping[Any, Any] = {
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
}
"""Operators that take a number, and the form that takes a tensor."""


def uses_length(node: fx.Node) -> bool:
    """Whether a size computed from a length is an operand of arithmetic, a fill value or a position."""
    sized = [operand for operand in node.all_input_nodes if _is_size(operand)]
    if str(node.target) in ("aten.full.default", "aten.new_full.default"):
        fill = node.args[1] if str(node.target) == "aten.full.default" else node.args[2]
        return isinstance(fill, fx.Node) and fill in sized
    return bool(sized) and str(node.target) not in _SHAPED


def lengths_from_sizes(graph: fx.Graph, axes: AxisNames) -> bool:
    """Rewrites ``graph`` in place; returns whether anything changed. What it can't rewrite is refused later."""
    changed = False
    for node in list(graph.nodes):
        if not isinstance(node.meta.get("val"), Tensor) or node.target not in _TAKES_NUMBER or not uses_length(node):
            continue
        with graph.inserting_before(node):
            first, second = (_operand(graph, node, operand, axes) for operand in node.args)
            if first is None or second is None or node.kwargs:
                continue
            new = graph.call_function(_TAKES_NUMBER[node.target], (first, second))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        changed = True
    if changed:
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return changed


def _is_size(operand: Any) -> bool:
    return isinstance(operand, fx.Node) and isinstance(operand.meta.get("val"), SymInt | SymFloat)


def _operand(graph: fx.Graph, node: fx.Node, operand: Any, axes: AxisNames) -> Any:
    """``operand``, where it is a size as a value with all dimensions 1: a value that is stored has one at least."""
    scalar = _as_tensor(graph, node, operand, axes)
    example = cast("Tensor", node.meta["val"])
    if scalar is None or not _is_size(operand) or not example.ndim:
        return scalar
    ones = [1] * example.ndim
    return _call(graph, node, scalar.meta["val"].new_empty(ones), aten.reshape.default, scalar, ones)


def _as_tensor(graph: fx.Graph, node: fx.Node, operand: Any, axes: AxisNames) -> Any:
    """``operand`` with sizes as values without dimensions, which take part in arithmetic as numbers do."""
    if not _is_size(operand):
        return operand
    size = operand.meta["val"]
    example = cast("Tensor", node.meta["val"])
    if isinstance(size, SymInt) and axes.is_axis(size):
        read = generated_input(graph, "length", str(axes.dim(size)), example.new_empty((1,), dtype=torch.int64))
        return _call(graph, node, example.new_empty((), dtype=torch.int64), aten.reshape.default, read, [])
    target = _ARITHMETIC.get(operand.target)
    if target is None or operand.kwargs:
        return None
    parts = [_as_tensor(graph, node, part, axes) for part in operand.args]
    if any(part is None for part in parts):
        return None
    value = example.new_empty((), dtype=torch.int64 if isinstance(size, SymInt) else torch.float32)
    if target is aten.to.dtype:
        return _call(graph, node, value, target, *parts, torch.float32)
    numbers = [part if isinstance(part, fx.Node) else _constant(graph, node, part) for part in parts]
    return _call(graph, node, value, target, *numbers)


def _constant(graph: fx.Graph, node: fx.Node, number: float) -> fx.Node:
    dtype = torch.int64 if isinstance(number, int) else torch.float32
    value = cast("Tensor", node.meta["val"]).new_empty((), dtype=dtype)
    return _call(graph, node, value, aten.full.default, [], number, dtype=dtype)


def _call(graph: fx.Graph, node: fx.Node, value: Tensor, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call that belongs to the layer of ``node``."""
    new = graph.call_function(target, args, kwargs)
    new.meta = dict(node.meta) | {"val": value}
    return new
