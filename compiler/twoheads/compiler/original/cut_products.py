"""Torch's matrix products with the inner dimension cut in two: the same numbers, rounded otherwise.

A compiled model's products sum in another order than torch's. Where an output is so few numbers that the attention's
rounding alone may leave them untouched by chance, these evaluations say how far rounding can move them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["CutProducts"]


class CutProducts(TorchFunctionMode):
    """Within it, products of matrices and convolutions add the products of two parts of what they sum over.

    Args:
        share: The first part is the ``share``-th part of the dimension, at least one; 2 cuts into halves.
    """

    def __init__(self, share: int) -> None:
        super().__init__()
        self._share = share

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        cut = _CUT.get(func)
        return func(*args, **(kwargs or {})) if cut is None or kwargs else cut(self._share, *args)


def _linear(share: int, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _matmul(share, rows, weight.transpose(0, 1))
    return product if bias is None else product + bias


def _addmm(share: int, added: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    return added + _matmul(share, rows, weight)


def _matmul(share: int, left: Tensor, right: Tensor) -> Tensor:
    width = left.shape[-1]
    if left.ndim < 2 or right.ndim < 2 or width < 2:
        return torch.matmul(left, right)
    at = max(1, width // share)
    return torch.matmul(left[..., :at], right[..., :at, :]) + torch.matmul(left[..., at:], right[..., at:, :])


def _conv(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The convolution with its input channels cut in two; one of groups stays as it is."""

    def cut(share: int, rows: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any) -> Tensor:
        width = weight.shape[1]
        if width < 2 or rows.ndim != weight.ndim or rows.shape[1] != width:
            return function(rows, weight, bias, *options)
        at = max(1, width // share)
        first = function(rows[:, :at], weight[:, :at], bias, *options)
        return first + function(rows[:, at:], weight[:, at:], None, *options)

    return cut


_CUT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    functional.conv1d: _conv(functional.conv1d),
    functional.conv2d: _conv(functional.conv2d),
}
