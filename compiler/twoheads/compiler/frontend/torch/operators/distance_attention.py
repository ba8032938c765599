"""Attention whose scores depend on content and distance at once, as one operator in a captured graph.

A query has one number for every distance that its model tells apart, and so has a key; the score is their product plus
the query's number and the key's for the distance between them. Numbers travel as further columns of queries and keys.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

__all__ = ["distance_attention"]


def distance_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    by_query: Tensor,
    by_key: Tensor | None,
    table: Tensor,
    scale: float,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention of the scores ``scale * (q_i k_j + by_query[i, d] + by_key[j, d])``, ``d = table[j - i]``.

    Args:
        query: ``[1, heads, n, head_dim]``.
        key: ``[1, heads, n, head_dim]``.
        value: ``[1, heads, n, v_head_dim]``.
        by_query: ``[1, heads, n, numbers]``.
        by_key: ``[1, heads, n, numbers]``; without it only the query's numbers are added.
        table: ``[2 * reach + 1]``, whole numbers below ``numbers``: entry ``reach + (j - i)``; the ends go on beyond.
        scale: Factor on all three terms.
        mask: Added to the scores, ``[1, 1, n, n]``.
        sinks: Logits ``[heads]`` that join the softmax's sum without a value.

    Returns:
        ``[1, heads, n, v_head_dim]``.
    """
    by_key = by_query * 0 if by_key is None else by_key
    wide = torch.cat([query, by_query], -1), torch.cat([key, by_key], -1)
    return cast("Tensor", distance_attention_op(*wide, value, table, by_query.shape[-1], scale, mask, sinks))


@torch.library.custom_op("twoheads::distance_attention", mutates_args=())
def distance_attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    width: int,
    scale: float,
    mask: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Eager form; the last ``width`` columns of queries and keys are their numbers by distance."""
    reach, length = table.shape[0] // 2, query.shape[2]
    positions = torch.arange(length)
    distances = (positions[None, :] - positions[:, None]).clamp(-reach, reach)
    index = table.to(torch.int64)[distances + reach].expand(*query.shape[:2], length, length)
    scores = query[..., :-width] @ key[..., :-width].transpose(-1, -2)
    scores = scores + query[..., -width:].gather(-1, index)
    scores = scores + key[..., -width:].gather(-1, index.transpose(-1, -2)).transpose(-1, -2)
    scores = scores * scale if mask is None else scores * scale + mask
    if sinks is None:
        return scores.softmax(-1) @ value
    column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value


@distance_attention_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    width: int,
    scale: float,
    mask: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))
