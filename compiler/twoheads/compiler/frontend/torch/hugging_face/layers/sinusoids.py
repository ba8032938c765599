"""Attentions whose scores hold products of queries with sinusoids of the distance (Transformer-XL), as plain products.

``q_i . W r(i - j)`` with sines and cosines in ``r`` is a product of two rows by the angle addition theorem: what the
query has for every frequency is turned by its own position, and the key's row is the sinusoids of the key's position.
So Conformers (wav2vec 2, Parakeet) and XLNet attend as others do, with queries and keys that are ``hidden_size`` wider.

The sinusoids of a position are products of those of its digits to the base :data:`BASE`, which are constants that were
computed in double precision: a position of 100,000 times a frequency would have lost five digits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.operators.attention_op import attention
from twoheads.graphs.errors import CompileError

__all__ = ["SINUSOIDS"]

BASE, DIGITS = 64, 4


def _sinusoids(length: Any, width: int) -> Tensor:
    """``[n, 2, width / 2]``: cosines and sines of every position's angles.

    Args:
        length: Number of positions.
        width: Twice the number of frequencies, ``10000 ** (-2 k / width)``.
    """
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    positions = torch.arange(length)
    made: tuple[Tensor, Tensor] | None = None
    for digit in range(DIGITS):
        angles = BASE**digit * np.arange(BASE)[:, None] * frequencies
        rows = (positions // BASE**digit) % BASE
        cosine, sine = (torch.tensor(np.float32(table).tolist())[rows] for table in (np.cos(angles), np.sin(angles)))
        if made is None:
            made = cosine, sine
        else:
            made = made[0] * cosine - made[1] * sine, made[1] * cosine + made[0] * sine
    assert made is not None
    return torch.stack(made, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, turned: Tensor, table: Tensor, scale: float) -> Tensor:
    """Attention of the scores ``scale * (q k + turned . r(i - j))``.

    Args:
        query: ``[1, heads, n, head_dim]``.
        key: ``[1, heads, n, head_dim]``.
        value: ``[1, heads, n, v_head_dim]``.
        turned: What each query has for sines and for cosines of the distance, ``[1, heads, n, 2, width / 2]``.
        table: Of :func:`_sinusoids`.
        scale: Of both terms.
    """
    (cosine, sine), (of_sines, of_cosines) = table.unbind(1), turned.unbind(3)
    by_cosine, by_sine = of_sines * sine + of_cosines * cosine, of_cosines * sine - of_sines * cosine
    keys = torch.cat([cosine, sine], -1)[None, None].expand(1, key.shape[1], -1, -1)
    return attention(torch.cat([query, by_cosine, by_sine], -1), torch.cat([key, keys], -1), value, scale=scale)


def _conformer_positions(part: Any, hidden_states: Tensor) -> Tensor:
    """In the place of rows by distance: those by position, which our attention takes."""
    width = getattr(part, "d_model", None) or part.config.hidden_size
    return _sinusoids(hidden_states.shape[1], width)


def _conformer(
    part: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    relative_position_embeddings: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """wav2vec 2's Conformer, with the one of SeamlessM4T and of wav2vec2-BERT where they have such positions."""
    if part.position_embeddings_type != "relative":
        found: tuple[Tensor, None] = type(part).forward(
            part, hidden_states, attention_mask, relative_position_embeddings, **others
        )
        return found
    _require_no_mask(part, attention_mask)
    assert relative_position_embeddings is not None
    query, key, value = (
        _split(linear(hidden_states), part.num_heads) for linear in (part.linear_q, part.linear_k, part.linear_v)
    )
    turned = _through(query + part.pos_bias_v[:, None], part.linear_pos.weight)
    mixed = _attend(query + part.pos_bias_u[:, None], key, value, turned, relative_position_embeddings, part.scaling)
    return part.linear_out(mixed.transpose(1, 2).reshape(hidden_states.shape)), None


def _parakeet(
    part: Any, hidden_states: Tensor, position_embeddings: Tensor, attention_mask: Any = None, **others: Any
) -> tuple[Tensor, None]:
    """Parakeet's Fast Conformer (Rekesh et al., arXiv 2305.05084)."""
    _require_no_mask(part, attention_mask)
    shape = (*hidden_states.shape[:-1], -1, part.head_dim)
    query, key, value = (
        linear(hidden_states).view(shape).transpose(1, 2) for linear in (part.q_proj, part.k_proj, part.v_proj)
    )
    key, value = (rows.repeat_interleave(part.num_key_value_groups, 1) for rows in (key, value))
    turned = _through(query + part.bias_v[:, None], part.relative_k_proj.weight)
    mixed = _attend(query + part.bias_u[:, None], key, value, turned, position_embeddings, part.scaling)
    return part.o_proj(mixed.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)), None


def _through(query: Tensor, weight: Tensor) -> Tensor:
    """Queries ``[1, heads, n, head_dim]`` times the projection of interleaved sinusoids: for sines, then cosines."""
    heads = query.shape[1]
    made = query @ weight.view(heads, -1, weight.shape[1])
    return made.view(*made.shape[:-1], -1, 2).transpose(-1, -2)


def _xlnet_positions(part: Any, qlen: Any, klen: Any, bsz: Any = None, device: Any = None) -> Tensor:
    """XLNet's sinusoids, of positions in the place of distances."""
    if part.bi_data or part.clamp_len > 0 or part.attn_type != "bi":
        raise CompileError(
            type(part).__name__,
            "reads its input both ways, clamps distances or hides later tokens (bi_data, clamp_len, attn_type)",
            'compile a model with bi_data=False, clamp_len=-1 and attn_type="bi"',
        )
    return _sinusoids(qlen, part.d_model)


def _xlnet(
    part: Any, h: Tensor, g: Any, attn_mask_h: Any, attn_mask_g: Any, r: Tensor, seg_mat: Any, **others: Any
) -> tuple[Tensor, None]:
    """XLNet's first stream (Yang et al., arXiv 1906.08237); rows are ``[n, 1, d_model]``."""
    given = {"g": g, "attn_mask_h": attn_mask_h, "seg_mat": seg_mat, **others}
    if named := sorted(name for name, value in given.items() if value is not None and value is not False):
        problem = f"is given {named[0]!r}, which is not understood"
        raise CompileError(type(part).__name__, problem, "compile the model for whole inputs of one segment")
    query, key, value = (torch.einsum("ibh,hnd->bnid", h, weight) for weight in (part.q, part.k, part.v))
    turned = (query + part.r_r_bias[:, None]) @ part.r.permute(1, 2, 0)
    turned = turned.view(*turned.shape[:-1], 2, -1)  # sines first, then cosines
    mixed = _attend(query + part.r_w_bias[:, None], key, value, turned, r, part.scale)
    return part.post_attention(h, mixed.permute(2, 0, 1, 3)), None


def _require_no_mask(part: Any, mask: Any) -> None:
    if mask is not None:
        raise CompileError(
            type(part).__name__, "is given a mask of its keys", "leave padding out: run inputs at their own length"
        )


def _split(rows: Tensor, heads: int) -> Tensor:
    return rows.view(*rows.shape[:-1], heads, -1).transpose(1, 2)


SINUSOIDS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Wav2Vec2ConformerRelPositionalEmbedding": {"forward": _conformer_positions},
    "XLNetModel": {"relative_positional_encoding": _xlnet_positions},
    "XLNetRelativeAttention": {"forward": _xlnet},
    "Wav2Vec2ConformerSelfAttention": {"forward": _conformer},
    "SeamlessM4TConformerRelPositionalEmbedding": {"forward": _conformer_positions},
    "SeamlessM4TConformerSelfAttention": {"forward": _conformer},
    "ParakeetEncoderRelPositionalEncoding": {"forward": _conformer_positions},
    "ParakeetEncoderAttention": {"forward": _parakeet},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
