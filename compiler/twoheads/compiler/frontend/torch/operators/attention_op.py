"""Attention as one operator in a captured graph, and its mask as text instead of an ``N x N`` array.

:func:`attention` is public: a module written by hand calls it to say exactly which attention it means (sinks, softcap
and windows included). The Hugging Face hooks call the same operators. While a model is captured only
their shapes matter; run eagerly they compute what they say.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.operators.impose_attention import with_band
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask

__all__ = ["attention", "plain_attention"]

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_attention() -> Generator[None]:
    """Within it, :func:`attention` computes by matrix products and a softmax only, never by a fused kernel."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: str = "full",
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention that twoheads compiles exactly, whatever the length.

    Args:
        query: ``[1, q_num_heads, n, head_dim]``.
        key: ``[1, kv_num_heads, n, head_dim]``; ``kv_num_heads`` divides ``q_num_heads``.
        value: ``[1, kv_num_heads, n, v_head_dim]``.
        mask: A mask expression, e.g. ``causal & window(511, 0)``; see :mod:`twoheads.graphs.masks.expressions`.
        scale: Factor on the scores; ``head_dim ** -0.5`` by default.
        softcap: Scores become ``softcap * tanh(scores / softcap)``; 0 for none.
        sinks: Learned sink logits ``[q_num_heads]``: they join the softmax's sum without a value.
        bias: Added to the scores, ``[1 or absent, q_num_heads or 1, n, n]``; it may depend on head and distance only.

    Returns:
        ``[1, q_num_heads, n, v_head_dim]``.

    Raises:
        CompileError: ``mask`` is not a mask expression, or the head counts do not divide.
    """
    parse_mask(mask)
    if query.shape[1] % key.shape[1]:
        raise CompileError(
            "attention", f"{query.shape[1]} query heads over {key.shape[1]} key/value heads do not divide"
        )
    factor = float(scale) if scale is not None else float(query.shape[-1]) ** -0.5
    return cast("Tensor", attention_op(query, key, value, mask_op(query, mask), bias, sinks, factor, softcap))


@torch.library.custom_op("twoheads::mask", mutates_args=())
def mask_op(like: Tensor, expression: str) -> Tensor:
    """The dense mask ``[1, 1, n, n]`` (bool, True = visible) for ``like [1, heads, n, head_dim]``."""
    positions = torch.arange(like.shape[2])
    dense = parse_mask(expression).dense(positions[:, None].numpy(), positions[None, :].numpy())
    return torch.from_numpy(dense.copy()).to(like.device)[None, None]


@mask_op.register_fake
def _(like: Tensor, expression: str) -> Tensor:
    return like.new_empty((1, 1, like.shape[2], like.shape[2]), dtype=torch.bool)


@torch.library.custom_op("twoheads::additive_mask", mutates_args=())
def additive_mask_op(like: Tensor, expression: str) -> Tensor:
    """The same as float32: 0 where it is visible, the lowest number elsewhere, as transformers' eager masks are."""
    hidden = ~mask_op(like, expression)
    return torch.zeros(hidden.shape, device=like.device).masked_fill(hidden, torch.finfo(torch.float32).min)


@additive_mask_op.register_fake
def _(like: Tensor, expression: str) -> Tensor:
    return like.new_empty((1, 1, like.shape[2], like.shape[2]), dtype=torch.float32)


@torch.library.custom_op("twoheads::attention", mutates_args=())
def attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Eager form of :func:`attention`; ``mask`` is bool or additive, broadcastable to ``[1, heads, n, n]``."""
    additive = _additive(mask, bias, query.dtype)
    with with_band() as band:
        if band is not None:
            length = query.shape[2]
            additive = _additive(additive, band(0, length, length).to(query.dtype), query.dtype)
        return _attend(query, key, value, additive, sinks, scale, softcap)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additive: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    if softcap == 0 and sinks is None and not _plain.get():
        grouped = query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=additive, scale=scale, enable_gqa=grouped
        )
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1).transpose(-1, -2), value.repeat_interleave(groups, 1)
    scores = (query @ keys) * scale if _plain.get() else (query * scale) @ keys
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    if additive is not None:
        scores = scores + additive
    if sinks is None:
        return scores.softmax(-1) @ values
    column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ values


def _additive(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    if mask is None or bias is None:
        return mask if bias is None else bias
    return mask + bias


@attention_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))
