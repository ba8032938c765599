"""Depthwise convolutions that see earlier tokens only become the scan operator: a block needs its last rows before.

A model writes them as a convolution with zeros on both sides, cut to the number of tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from twoheads.compiler.frontend.torch.fx.axes import AxisNames
from twoheads.compiler.frontend.torch.operators import scan_ops

__all__ = ["scan_causal_convs"]

aten = torch.ops.aten


def scan_causal_convs(graph: fx.Graph, axes: AxisNames) -> None:
    """Rewrites ``graph`` in place; other convolutions along tokens are left as they are."""
    for node in list(graph.nodes):
        if node.target is not aten.slice.Tensor or not _is_causal_conv(node, axes):
            continue
        conv = cast("fx.Node", node.args[0])
        x, weight, bias = cast("tuple[fx.Node, fx.Node, fx.Node | None]", (*conv.args, None)[:3])
        with graph.inserting_before(node):
            rows = _call(graph, aten.transpose.int, (x, 1, 2), node)
            taps = _call(graph, aten.squeeze.dim, (weight, 1), node)
            made = _call(graph, scan_ops.CAUSAL_CONV, (rows, taps, bias), node)
            back = _call(graph, aten.transpose.int, (made, 1, 2), node)
        node.replace_all_uses_with(back)
        graph.erase_node(node)
        if not conv.users:
            graph.erase_node(conv)


def _is_causal_conv(node: fx.Node, axes: AxisNames) -> bool:
    """Whether it is the first ``n`` columns of a depthwise convolution with ``taps - 1`` zeros before."""
    arguments: list[Any] = [*node.args, *(None, 0, None, None, 1)[len(node.args) :]]
    conv, axis, start, _, step = arguments
    if not isinstance(conv, fx.Node) or conv.target is not aten.conv1d.default:
        return False
    given: list[Any] = [*conv.args, *(None, [1], [0], [1], 1)[len(conv.args) - 2 :]]
    x, weight, _, stride, padding, dilation, groups = given
    channels, taps = (int(size) for size in weight.meta["val"].shape[::2])
    same_length = str(node.meta["val"].shape) == str(x.meta["val"].shape)
    depthwise = groups == channels == x.meta["val"].shape[1] and weight.meta["val"].shape[1] == 1
    plain = [*stride, *dilation, *padding] == [1, 1, taps - 1] and taps > 1
    first = axis in (2, -1) and start in (0, None) and step == 1
    return same_length and depthwise and plain and first and axes.is_axis(x.meta["val"].shape[2])


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta = dict(like.meta)
    with like.meta["val"].fake_mode:
        node.meta["val"] = target(*fx.map_arg(args, lambda operand: operand.meta["val"]))
    return node
