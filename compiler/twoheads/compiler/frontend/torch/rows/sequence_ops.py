"""The operators of :mod:`twoheads.graphs.program.sequence_operators` as torch functions, which FX nodes call.

Attributes are keyword arguments of the operator's own names. The others say how large the result is: ``shape`` of a
result without a token axis, ``add`` and ``div`` of one whose rows are counted by ``(rows of x + add) // div``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from twoheads.graphs.program.sequence_operators import DTYPES

__all__ = ["SEQUENCE_OPERATORS", "cast", "concat", "cumsum", "take", "take_at", "take_rows"]


def take(x: Tensor, *, axis: int, from_end: int, start: int, step: int, add: int, div: int) -> Tensor:
    """Rows ``start + step*t`` of ``x``, 0 outside of it; ``(rows + add) // div`` of them."""
    return _take(x, axis, from_end, start, step, (x.shape[axis] + add) // div)


def take_rows(x: Tensor, *, axis: int, from_end: int, start: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """A constant number of rows of ``x``: as many as ``shape`` has along ``axis``, one where it lacks that."""
    rows = shape[axis] if len(shape) == x.ndim else 1
    return _take(x, axis, from_end, start, step, rows).reshape(shape)


def take_at(x: Tensor, index: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The row of ``x`` whose number is ``index`` (one entry; negative ones count from the end)."""
    return x.index_select(axis, index.reshape(1) % x.shape[axis]).reshape(shape)


def concat(*parts: Tensor, axis: int) -> Tensor:
    """The rows of all parts."""
    return torch.cat(parts, axis)


def cumsum(x: Tensor, *, axis: int) -> Tensor:
    """The running sum along ``axis``."""
    return x.cumsum(axis)


def cast(x: Tensor, *, to: int) -> Tensor:
    """``x`` of dtype ``DTYPES[to]``."""
    return x.to(getattr(torch, DTYPES[to]))


def reduce_sum(x: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The sum over all rows."""
    return x.sum(axis).reshape(shape)


def reduce_mean(x: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The mean over all rows."""
    return x.mean(axis).reshape(shape)


def reduce_max(x: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The largest entry of all rows."""
    return x.amax(axis).reshape(shape)


def reduce_min(x: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The smallest entry of all rows."""
    return x.amin(axis).reshape(shape)


def argmax(x: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    """The number of the first largest row; torch promises no order among equals, NumPy takes the first."""
    rows = torch.arange(x.shape[axis]).reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    largest = x == x.amax(axis, keepdim=True)
    return torch.where(largest, rows, x.shape[axis]).amin(axis).reshape(shape)


def add(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x + other``."""
    return x + (other[0] if other else value)


def sub(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x - other``."""
    return x - (other[0] if other else value)


def mul(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x * other``."""
    return x * (other[0] if other else value)


def equal(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x == other``."""
    return x == (other[0] if other else value)


def not_equal(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x != other``."""
    return x != (other[0] if other else value)


def greater(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x > other``."""
    return x > (other[0] if other else value)


def less(x: Tensor, *other: Tensor, value: int = 0) -> Tensor:
    """``x < other``."""
    return x < (other[0] if other else value)


def logical_and(x: Tensor, other: Tensor) -> Tensor:
    """Both."""
    return torch.logical_and(x, other)


def logical_or(x: Tensor, other: Tensor) -> Tensor:
    """Either."""
    return torch.logical_or(x, other)


def logical_not(x: Tensor) -> Tensor:
    """Not."""
    return torch.logical_not(x)


def where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """``x`` where the condition holds, else ``other``."""
    return torch.where(condition, x, other)


SEQUENCE_OPERATORS: Mapping[Callable[..., Any], str] = {
    take: "take",
    take_rows: "take",
    take_at: "take_at",
    concat: "concat",
    reduce_sum: "sum",
    reduce_mean: "mean",
    reduce_max: "max",
    reduce_min: "min",
    **{
        function: function.__name__
        for function in (
            cumsum, argmax, cast, add, sub, mul, equal, not_equal, greater, less, logical_and, logical_or, logical_not,
            where,
        )
    },
}  # fmt: skip
"""The operator that each function is."""


def _take(x: Tensor, axis: int, from_end: int, start: int, step: int, rows: int) -> Tensor:
    length = x.shape[axis]
    at = start + from_end * length + step * torch.arange(rows)
    inside = (at >= 0) & (at < length)
    taken = x.index_select(axis, at.clamp(0, length - 1))
    along = inside.reshape([-1 if dim == axis else 1 for dim in range(x.ndim)])
    return torch.where(along, taken, torch.zeros((), dtype=x.dtype))
