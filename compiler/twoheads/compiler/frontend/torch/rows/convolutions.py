"""Convolutions along tokens: the rows under each of a kernel's taps, then a token-wise product.

A waveform's convolution has one axis; that of a spectrogram has two, of which the tokens are one: along the other, the
kernel stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from twoheads.compiler.frontend.torch.rows import sequence_ops as ops
from twoheads.compiler.frontend.torch.rows.sequence_builder import SequenceBuilder, all_arguments, along_tokens

__all__ = ["convolution_by_rows", "windows_by_rows"]

aten = torch.ops.aten


def convolution_by_rows(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    """The node in the place of a convolution; ``None`` where that does not move rows, or is of a form not known."""
    given = all_arguments(node)
    x, weight = given["input"], given["weight"]
    value, kernel = x.meta["val"], weight.meta["val"]
    axes = value.ndim - 2
    axis = next((at for at in range(2, value.ndim) if along_tokens(x, at) is not None), None)
    if axis is None or axes not in (1, 2) or given.get("transposed"):
        return None
    taps = int(kernel.shape[axis])
    stride, dilation = (_each(given[name], axes) for name in ("stride", "dilation"))
    reach = dilation[axis - 2] * (taps - 1)
    padding = _padding(given["padding"], reach, axes)
    if padding is None:
        return None
    before, after = padding[axis - 2]
    if (taps, stride[axis - 2], before, after) == (1, 1, 0, 0):
        return None
    tokens = node.meta["val"].shape[axis]
    sizes = [tokens if at == axis else int(size) for at, size in enumerate(value.shape)]
    step = stride[axis - 2]
    rows = [
        build.call(
            ops.take, x, value=value.new_empty(sizes), axis=axis, from_end=0,
            start=tap * dilation[axis - 2] - before, step=step, add=before + after - reach - 1 + step, div=step,
        )
        for tap in range(taps)
    ]  # fmt: skip
    columns = _columns(build, rows, sizes, axis)
    matrix = _matrix(build, weight, axis)
    flat = [[1 if at == axis - 2 else size for at, size in enumerate(numbers)] for numbers in (stride, dilation)]
    others = [0 if at == axis - 2 else pair[0] for at, pair in enumerate(padding)]
    target = (aten.conv1d.default, aten.conv2d.default)[axes - 1]
    return build.call(target, columns, matrix, given["bias"], flat[0], others, flat[1], given["groups"])


def windows_by_rows(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    """The node in the place of an ``unfold`` along tokens: the rows at each place of a window, side by side."""
    given = all_arguments(node)
    x, size, step = given["self"], given["size"], given["step"]
    axis = along_tokens(x, given["dimension"])
    if axis is None or not isinstance(size, int) or not isinstance(step, int):
        return None
    value = node.meta["val"].new_empty(node.meta["val"].shape[:-1])
    rows = [
        build.call(
            ops.take, x, value=value, axis=axis, from_end=0, start=place, step=step, add=step - size, div=step
        )
        for place in range(size)
    ]  # fmt: skip
    return build.call(aten.stack.default, rows, value.ndim)


def _columns(build: SequenceBuilder, rows: list[fx.Node], sizes: list[Any], axis: int) -> fx.Node:
    """``[1, channels * taps, ..]`` of the rows under each tap."""
    value = rows[0].meta["val"]
    taps, channels = len(rows), sizes[1]
    stacked = value.new_empty([1, channels, taps, *sizes[2:]])
    made = build.call(aten.stack.default, rows, 2, value=stacked)
    shape = [1, channels * taps, *(-1 if at == axis else size for at, size in enumerate(sizes) if at > 1)]
    flat = value.new_empty([1, channels * taps, *sizes[2:]])
    return build.call(aten.reshape.default, made, shape, value=flat)


def _matrix(build: SequenceBuilder, weight: fx.Node, axis: int) -> fx.Node:
    """The kernel with its taps along the tokens beside its channels, and one tap left there."""
    value = weight.meta["val"]
    if axis > 2:
        order = [0, 1, axis, *(at for at in range(2, value.ndim) if at != axis)]
        weight = build.call(aten.permute.default, weight, order, value=value.permute(order))
    shape = [int(value.shape[0]), -1, *(1 if at == axis else int(value.shape[at]) for at in range(2, value.ndim))]
    return build.call(aten.reshape.default, weight, shape, value=value.reshape(shape))


def _each(argument: Any, axes: int) -> list[int]:
    """An argument as one number for each axis."""
    numbers = [argument] if isinstance(argument, int) else [int(number) for number in argument]
    return numbers * axes if len(numbers) == 1 else numbers


def _padding(padding: Any, reach: int, axes: int) -> list[tuple[int, int]] | None:
    """Zeros before and after along each axis; ``reach`` is how far a kernel's last tap lies behind its first."""
    match padding:
        case "valid":
            return [(0, 0)] * axes
        case "same":
            return [(reach // 2, reach - reach // 2)] if axes == 1 else None
        case str():
            return None
        case _:
            return [(size, size) for size in _each(padding, axes)]
