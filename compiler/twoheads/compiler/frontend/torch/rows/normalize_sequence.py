"""Recognises what moves rows between tokens outside of attention, and rewrites it to sequence operators.

One function a kind of movement: it looks at a node of an FX graph and returns the node that replaces it, or ``None``
where the node does not move rows. Whatever mixes tokens and is not recognised here stays, and is refused by the check
of the regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, cast

import torch
from torch import SymInt, Tensor, fx

from twoheads.compiler.frontend.torch.rows import sequence_ops as ops
from twoheads.compiler.frontend.torch.rows.convolutions import convolution_by_rows, windows_by_rows
from twoheads.compiler.frontend.torch.rows.host_arithmetic import move_to_host
from twoheads.compiler.frontend.torch.rows.sequence_builder import (
    Rule,
    SequenceBuilder,
    all_arguments,
    along_tokens,
    is_number,
    number_of,
    token_dims,
)
from twoheads.graphs.program.sequence_operators import DTYPES

__all__ = ["normalize_sequence", "token_dims"]

aten = torch.ops.aten

UNBOUNDED = 1 << 40
"""Ends of slices beyond this mean the end of the value."""


def normalize_sequence(
    graph: fx.Graph, constants: Mapping[str, int] | None = None, keep: Set[str] = frozenset()
) -> dict[str, str]:
    """Rewrites ``graph`` in place.

    Args:
        graph: Of an exported program, whose positions are an input.
        constants: Shape symbols that have one value only, because the model fixes that number of tokens.
        keep: Names of nodes that stay even where no node reads them: operands of attentions that were recognised.

    Returns:
        Names of the nodes that took the place of others, by the names of those.
    """
    renamed: dict[str, str] = {}
    for node in list(graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or not isinstance(node.meta.get("val"), Tensor | tuple | list):
            continue
        with graph.inserting_before(node):
            new = rule(SequenceBuilder(graph, node, constants or {}), node)
        if new is not None:
            node.replace_all_uses_with(new)
            renamed[node.name] = new.name
    renamed |= move_to_host(graph)
    if renamed:
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.name in keep)
    return renamed


def _select(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    x, dim, index = node.args[0], cast("int", node.args[1]), number_of(node.args[2])
    axis = along_tokens(x, dim)
    if axis is None or index is None:
        return None
    return build.constant_rows(cast("fx.Node", x), axis, index, 1)


def _slice(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    given = all_arguments(node)
    x, axis = given["self"], along_tokens(given["self"], given["dim"])
    start, end, step = number_of(given["start"] or 0), _end(given["end"], given["self"], axis), given["step"]
    if axis is None or start is None or end is None or not isinstance(step, int):
        return None
    if start == 0 and end >= UNBOUNDED and step == 1:
        return cast("fx.Node", x)
    if (end >= UNBOUNDED or end < 0) and start >= 0:  # all but the first and the last
        cut = start - (end if end < 0 else 0)
        return build.call(ops.take, x, axis=axis, from_end=0, start=start, step=step, add=step - 1 - cut, div=step)
    if token_dims(node) or step != 1:
        return None
    return build.constant_rows(x, axis, start, int(node.meta["val"].shape[axis]))


def _end(end: Any, x: Any, axis: int | None) -> int | None:
    """Where a slice ends, from the value's end where that is known: ``UNBOUNDED`` or negative."""
    if end is None or axis is None:
        return UNBOUNDED
    value = end.meta.get("val") if isinstance(end, fx.Node) else end
    if isinstance(value, SymInt) and not is_number(value):
        rest = x.meta["val"].shape[axis].node.expr - value.node.expr
        if not rest.is_Integer:
            return None
        return -int(rest) if rest > 0 else UNBOUNDED
    return number_of(end)


def _flip(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    x, dims = node.args[0], cast("list[int]", node.args[1])
    axis = along_tokens(x, dims[0]) if len(dims) == 1 else None
    if axis is None:
        return None
    return build.call(ops.take, x, axis=axis, from_end=1, start=-1, step=-1, add=0, div=1)


def _pad(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    given = all_arguments(node)
    x, widths = given["self"], cast("list[Any]", given["pad"])
    dims = token_dims(x)
    pairs = [(number_of(widths[2 * at]), number_of(widths[2 * at + 1])) for at in range(len(widths) // 2)]
    padded = [x.meta["val"].ndim - 1 - at for at, pair in enumerate(pairs) if pair != (0, 0)]
    if len(dims) != 1 or tuple(padded) != dims or given["value"]:
        return None
    before, after = pairs[x.meta["val"].ndim - 1 - dims[0]]
    if before is None or after is None:
        return None
    x, start, add = _shifted(x, dims[0], before, after)
    return build.call(
        ops.take, x, axis=dims[0], from_end=0, start=start - before, step=1, add=add + before + after, div=1
    )


def _shifted(x: fx.Node, axis: int, before: int, after: int) -> tuple[fx.Node, int, int]:
    """Where rows of zeros around a slice lie outside of what was cut: that, its first row, and how many more it had.

    ``pad(x[1:], 1)`` is a shift of ``x``; cut first, an input of one token would leave none.
    """
    whole = x.target is ops.take and (x.kwargs["from_end"], x.kwargs["step"], x.kwargs["div"]) == (0, 1, 1)
    if whole and x.kwargs["axis"] == axis:
        start, add = cast("int", x.kwargs["start"]), cast("int", x.kwargs["add"])
        if (not before or start <= 0) and (not after or start + add >= 0):
            return cast("fx.Node", x.args[0]), start, add
    return x, 0, 0


def _concat(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    parts = cast("list[fx.Node]", node.args[0])
    dim = cast("int", node.args[1]) if len(node.args) > 1 else 0
    axis = along_tokens(node, dim)
    if axis is None:
        return None
    results = [
        build.call(aten.alias.default, part, value=part.meta["val"]) if part.op == "placeholder" else part
        for part in parts
    ]  # a sequence operator reads results, and a part may be a weight
    first, cut_first = _uncut(results[0], axis, from_end=False)
    last, cut_last = _uncut(results[-1], axis, from_end=True)
    if len(results) < 2 or not (cut_first or cut_last):
        return build.call(ops.concat, *results, axis=axis)
    sizes = [size + cut_first + cut_last if at == axis else size for at, size in enumerate(node.meta["val"].shape)]
    value = node.meta["val"].new_empty(sizes)
    whole = build.call(ops.concat, first, *results[1:-1], last, axis=axis, value=value)
    cut = cut_first + cut_last
    return build.call(ops.take, whole, axis=axis, from_end=0, start=cut_first, step=1, add=-cut, div=1)


def _uncut(part: fx.Node, axis: int, *, from_end: bool) -> tuple[fx.Node, int]:
    """What an outer part of a concatenation was cut from at its outer end, and how many rows.

    ``cat(zeros, x[:-1])`` shifts ``x``; cut first, an input of one token would leave none of it.
    """
    whole = part.target is ops.take and (part.kwargs["from_end"], part.kwargs["step"], part.kwargs["div"]) == (0, 1, 1)
    if whole and part.kwargs["axis"] == axis:
        start, add = cast("int", part.kwargs["start"]), cast("int", part.kwargs["add"])
        cut = -add if from_end else start
        if cut > 0 and (start, add) == ((0, -cut) if from_end else (cut, -cut)):
            return cast("fx.Node", part.args[0]), cut
    return part, 0


def _index(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    """``x[zeros, index]``: one row, and nothing chosen along other dimensions than those of size 1."""
    x, indices = cast("fx.Node", node.args[0]), cast("list[fx.Node | None]", node.args[1])
    dims = token_dims(x)
    if len(dims) != 1 or len(indices) <= dims[0] or token_dims(node):
        return None
    index = indices[dims[0]]
    others = [at for at, given in enumerate(indices) if given is not None and at != dims[0]]
    if index is None or not _is_one_number(index) or any(x.meta["val"].shape[at] != 1 for at in others):
        return None
    return build.rows(ops.take_at, x, index, axis=dims[0])


def _index_select(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    x, dim, index = cast("tuple[fx.Node, int, fx.Node]", node.args)
    axis = along_tokens(x, dim)
    return None if axis is None or not _is_one_number(index) else build.rows(ops.take_at, x, index, axis=axis)


def _is_one_number(index: fx.Node) -> bool:
    value = cast("Tensor", index.meta["val"])
    whole = not value.dtype.is_floating_point and value.dtype != torch.bool
    return whole and not token_dims(index) and value.numel() == 1 and index.op != "placeholder"


def _reduction(target: Any, over_others: Any) -> Rule:
    """Reduces over tokens first, then over whatever other dimensions are named."""

    def rule(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
        given = all_arguments(node)
        x, value = given["self"], node.meta["val"]
        dims = token_dims(x)
        rank = x.meta["val"].ndim
        named = given.get("dim")
        named = [named] if isinstance(named, int) else list(named or range(rank))
        over = sorted(dim % rank for dim in named) if rank else []
        if len(dims) != 1 or dims[0] not in over:
            return None
        if given.get("dtype") not in (None, x.meta["val"].dtype) and x.meta["val"].dtype.is_floating_point:
            return None
        if target is ops.reduce_sum and x.meta["val"].dtype == torch.bool:  # counts
            x = build.call(ops.cast, x, value=x.meta["val"].to(torch.int64), to=DTYPES.index("int64"))
        if over == [dims[0]]:
            return build.rows(target, x, axis=dims[0])
        source = x.meta["val"]
        kept = source.new_empty(
            [1 if at == dims[0] else int(s) for at, s in enumerate(source.shape)], dtype=value.dtype
        )
        rows = build.rows(target, x, axis=dims[0], value=kept)
        return build.call(over_others, rows, over, bool(given.get("keepdim", False)))

    return rule


def _extreme(target: Any) -> Rule:
    """``max(dim)`` and ``min(dim)``, which return indices as well, where nobody reads those."""

    def rule(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
        axis = along_tokens(node.args[0], cast("int", node.args[1]))
        read = {cast("int", user.args[1]) for user in node.users if user.users}
        if axis is None or read != {0}:
            return None
        value = cast("tuple[Tensor, Tensor]", node.meta["val"])[0]
        result = build.rows(target, cast("fx.Node", node.args[0]), axis=axis, value=value)
        for user in list(node.users):
            user.replace_all_uses_with(result)
        return result

    return rule


def _average_pool(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    x = cast("fx.Node", node.args[0])
    axis = along_tokens(x, -1)
    if axis is None or [number_of(size) for size in cast("list[Any]", node.args[1])] != [1]:
        return None
    return build.rows(ops.reduce_mean, x, axis=axis)


def _cumsum(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    x, axis = cast("fx.Node", node.args[0]), along_tokens(node.args[0], cast("int", node.args[1]))
    return None if axis is None or x.meta["val"].dtype.is_floating_point else build.call(ops.cumsum, x, axis=axis)


def _argmax(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    given = all_arguments(node)
    x, dim = cast("fx.Node", given["self"]), given["dim"]
    axis = None if dim is None else along_tokens(x, dim)
    return None if axis is None or x.meta["val"].dtype.is_floating_point else build.rows(ops.argmax, x, axis=axis)


def _softmax(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    """A softmax over tokens that is no attention (a learned pooling): its maximum and its sum are row values."""
    x, axis = cast("fx.Node", node.args[0]), along_tokens(node.args[0], cast("int", node.args[1]))
    value = node.meta["val"]
    if axis is None or (len(node.args) > 2 and node.args[2] not in (None, value.dtype)):
        return None
    one = value.new_empty([1 if at == axis else int(size) for at, size in enumerate(value.shape)])
    largest = build.rows(ops.reduce_max, x, axis=axis, value=one)
    powers = build.call(aten.exp.default, build.call(aten.sub.Tensor, x, largest))
    return build.call(aten.div.Tensor, powers, build.rows(ops.reduce_sum, powers, axis=axis, value=one))


def _group_norm(build: SequenceBuilder, node: fx.Node) -> fx.Node | None:
    """A norm over all tokens (and the channels of a group): mean and variance are row values."""
    given = all_arguments(node)
    x, groups = cast("fx.Node", given["input"]), cast("int", given["num_groups"])
    axis = along_tokens(x, -1)
    if axis is None or x.meta["val"].ndim != 3:
        return None
    source = x.meta["val"]
    channels, tokens = int(source.shape[1]), source.shape[2]
    grouped = source.new_empty((1, groups, channels // groups, tokens))
    one = source.new_empty((1, groups, 1, 1))

    def mean(rows: fx.Node) -> fx.Node:
        each = source.new_empty((1, groups, channels // groups, 1))
        return build.call(aten.mean.dim, build.rows(ops.reduce_mean, rows, axis=3, value=each), [2], True, value=one)

    rows = build.call(aten.reshape.default, x, [1, groups, channels // groups, -1], value=grouped)
    centred = build.call(aten.sub.Tensor, rows, mean(rows), value=grouped)
    variance = mean(build.call(aten.mul.Tensor, centred, centred, value=grouped))
    raised = build.call(aten.add.Tensor, variance, given["eps"], value=one)
    unit = build.call(aten.rsqrt.default, raised, value=one)
    made = build.call(aten.mul.Tensor, centred, unit, value=grouped)
    made = build.call(aten.reshape.default, made, [1, channels, -1], value=source.new_empty((1, channels, tokens)))
    for target, name in ((aten.mul.Tensor, "weight"), (aten.add.Tensor, "bias")):
        if given[name] is not None:
            column = cast("fx.Node", given[name]).meta["val"].reshape(-1, 1)
            made = build.call(target, made, build.call(aten.reshape.default, given[name], [-1, 1], value=column))
    return made


_RULES: Mapping[Any, Rule] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.flip.default: _flip,
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
    aten.cat.default: _concat,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.mean.dim: _reduction(ops.reduce_mean, aten.mean.dim),
    aten.mean.default: _reduction(ops.reduce_mean, aten.mean.dim),
    aten.sum.dim_IntList: _reduction(ops.reduce_sum, aten.sum.dim_IntList),
    aten.sum.default: _reduction(ops.reduce_sum, aten.sum.dim_IntList),
    aten.amax.default: _reduction(ops.reduce_max, aten.amax.default),
    aten.amin.default: _reduction(ops.reduce_min, aten.amin.default),
    aten.max.default: _reduction(ops.reduce_max, aten.amax.default),
    aten.min.default: _reduction(ops.reduce_min, aten.amin.default),
    aten.max.dim: _extreme(ops.reduce_max),
    aten.min.dim: _extreme(ops.reduce_min),
    aten.adaptive_avg_pool1d.default: _average_pool,
    aten.cumsum.default: _cumsum,
    aten.argmax.default: _argmax,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.group_norm.default: _group_norm,
    aten.unfold.default: windows_by_rows,
    **dict.fromkeys(
        (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.convolution.default),
        convolution_by_rows,
    ),
}
