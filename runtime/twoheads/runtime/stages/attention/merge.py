"""The algebra of partial attention on NumPy arrays: merge by log-sum-exp, and attention tile by tile.

The engines contain the same algebra; these functions are for those who build on it, and the reference of the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Full, Intervals, Mask, parse_mask

__all__ = ["attention", "merge_state"]

Array = npt.NDArray[Any]


def merge_state(out_a: Array, lse_a: Array, out_b: Array, lse_b: Array) -> tuple[Array, Array]:
    """Merges the attention of the same queries over two disjoint sets of keys.

    ``lse = log(exp(lse_a) + exp(lse_b))`` and ``out`` is the mean of the two weighted by ``exp(lse)``: commutative and
    associative, so partials may be computed anywhere and merged in any order. ``(0, -inf)`` is the neutral element and
    what a fully masked row gives.

    Args:
        out_a: Normalised output ``[..., query, v_head_dim]`` over the first set.
        lse_a: Log-sum-exp of the scores of the first set, natural log, ``[..., query]``.
        out_b: As ``out_a``, over the second set.
        lse_b: As ``lse_a``, over the second set.

    Returns:
        ``(out, lse)`` of the union, in the dtypes of the arguments.
    """
    top = np.maximum(lse_a, lse_b)
    # Rows that see no key in either set would be inf - inf; any finite reference leaves their weights at 0.
    reference = np.where(np.isneginf(top), 0.0, top).astype(top.dtype)
    weight_a = np.exp(lse_a - reference)
    weight_b = np.exp(lse_b - reference)
    total = weight_a + weight_b
    divisor = np.where(total > 0, total, 1)
    out = out_a * (weight_a / divisor)[..., None] + out_b * (weight_b / divisor)[..., None]
    with np.errstate(divide="ignore"):  # log(0) = -inf is the answer for a row without keys
        return out.astype(np.result_type(out_a, out_b)), (reference + np.log(total)).astype(top.dtype)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask | str | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    block_size: int = 256,
    key_tile: int | None = None,
) -> tuple[Array, Array]:
    """Softmax attention, computed tile by tile and merged; memory ``O(block_size * key_tile)`` beyond its arguments.

    Args:
        q: Queries ``[..., q_num_heads, query, head_dim]``.
        k: Keys ``[..., kv_num_heads, key, head_dim]``; ``kv_num_heads`` divides ``q_num_heads``.
        v: Values ``[..., kv_num_heads, key, v_head_dim]``.
        mask: Which key position a query position sees (both count from 0), as an expression or its text, e.g.
            ``"causal & window(511, 0)"``; ``None`` for all.
        scale: Factor on ``q k^T``; ``None`` for ``head_dim ** -0.5``.
        softcap: Scores become ``softcap * tanh(scores / softcap)``; 0 for none.
        sinks: Learned sink logits ``[q_num_heads]``: a key per head that takes weight and has no value.
        block_size: Queries of a tile, any positive number.
        key_tile: Keys of a tile; ``None`` for ``block_size``.

    Returns:
        ``out [..., q_num_heads, query, v_head_dim]`` and ``lse [..., q_num_heads, query]``, in ``q``'s dtype. A query
        that sees nothing has ``out = 0`` and ``lse = -inf``.

    Raises:
        InputError: The shapes or sizes do not fit together.
    """
    _check_shapes(q, k, v, sinks, block_size, key_tile)
    expression = parse_mask(mask) if isinstance(mask, str) else mask or Full()
    width = key_tile or block_size
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = q.shape[-2], k.shape[-2]
    out = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    lse = np.full(q.shape[:-1], -np.inf, q.dtype)
    if sinks is not None:
        lse[...] = np.asarray(sinks, q.dtype)[:, None]
    for row in range(0, queries, block_size):
        stop = min(row + block_size, queries)
        support, covered = expression.support((row, stop)), expression.covered((row, stop))
        for key in range(0, keys, width):
            end = min(key + width, keys)
            if not _touches(support, key, end):
                continue
            visible = None
            if not _inside(covered, key, end):
                visible = expression.dense(np.arange(row, stop)[:, None], np.arange(key, end)[None, :])
            part = _tile(q[..., row:stop, :], k[..., key:end, :], v[..., key:end, :], visible, factor, softcap)
            out[..., row:stop, :], lse[..., row:stop] = merge_state(
                out[..., row:stop, :], lse[..., row:stop], part[0], part[1]
            )
    return out, lse


def _check_shapes(q: Array, k: Array, v: Array, sinks: Array | None, block_size: int, key_tile: int | None) -> None:
    fits = (
        min(q.ndim, k.ndim, v.ndim) >= 3
        and q.shape[-1] == k.shape[-1]
        and k.shape[:-1] == v.shape[:-1]
        and q.shape[:-3] == k.shape[:-3]
        and k.shape[-3] > 0
        and q.shape[-3] % k.shape[-3] == 0
    )
    if not fits:
        raise InputError(
            "attention",
            f"q {q.shape}, k {k.shape}, v {v.shape} do not fit together",
            "give [..., q_num_heads, query, head_dim], [..., kv_num_heads, key, head_dim] and [..., kv_num_heads, key, "
            "v_head_dim], where kv_num_heads divides q_num_heads",
        )
    if sinks is not None and np.shape(sinks) != (q.shape[-3],):
        raise InputError("attention", f"sinks {np.shape(sinks)}, expected ({q.shape[-3]},)", "one logit per query head")
    if block_size < 1 or (key_tile is not None and key_tile < 1):
        raise InputError("attention", f"tiles of {block_size} x {key_tile}", "give at least 1 token a side")


def _touches(intervals: Intervals, start: int, stop: int) -> bool:
    return any(low < stop and start < high for low, high in intervals)


def _inside(intervals: Intervals, start: int, stop: int) -> bool:
    return any(low <= start and stop <= high for low, high in intervals)


def _tile(
    q: Array, k: Array, v: Array, visible: npt.NDArray[np.bool_] | None, scale: float, softcap: float
) -> tuple[Array, Array]:
    """One tile's ``(out, lse)``; ``visible [query, key]`` is ``None`` where every query sees every key."""
    kv_heads = k.shape[-3]
    group = q.shape[-3] // kv_heads
    grouped = q.reshape(*q.shape[:-3], kv_heads, group, *q.shape[-2:])
    scores = (grouped * np.asarray(scale, q.dtype)) @ k[..., None, :, :].swapaxes(-1, -2)
    if softcap:
        scores = np.asarray(softcap, q.dtype) * np.tanh(scores / np.asarray(softcap, q.dtype))
    if visible is not None:
        scores = np.where(visible, scores, np.asarray(-np.inf, q.dtype))
    top = scores.max(axis=-1, keepdims=True)
    top = np.where(np.isneginf(top), 0, top).astype(top.dtype)  # a fully masked row: exp(-inf - 0) = 0, not nan
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = (weights @ v[..., None, :, :]) / np.where(total > 0, total, 1)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])
