"""Attentions whose scores have terms of content and distance at once, written with our attention by distance.

DeBERTa multiplies queries and keys with embeddings of distances, WavLM scales a bias by distance with a gate that
depends on the query, wav2vec2-BERT and SpeechT5 multiply queries with embeddings of distances. All of these are numbers
that a query or a key has for every distance that is told apart, of which each pair chooses one.

The library's masks of padding that reach these layers are made of ones, as no input of ours is a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twoheads.compiler.frontend.torch.operators.attention_op import attention
from twoheads.compiler.frontend.torch.operators.distance_attention import distance_attention
from twoheads.graphs.errors import CompileError

__all__ = ["RELATIVE_POSITIONS", "backward_distances"]


def _deberta_embeddings(part: Any, input_ids: Tensor, *_: Any, **named: Any) -> Tensor:
    """With positions counted: the library slices a buffer of them, which ends even where no embedding reads it."""
    positions = torch.arange(input_ids.shape[1])[None]
    found: Tensor = type(part).forward(part, input_ids, **named | {"position_ids": positions})
    return found


def _disentangled(
    part: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    output_attentions: bool = False,
    query_states: Any = None,
    relative_pos: Any = None,
    rel_embeddings: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """DeBERTa (He et al., arXiv 2006.03654, equation 4), its second and third version, and SEW-D."""
    if query_states is not None:
        raise CompileError(
            type(part).__name__, "is given queries of other tokens than its keys", "compile the encoder alone"
        )
    query, key, value = _disentangled_heads(part, hidden_states)
    kinds = set(part.pos_att_type)
    if unknown := kinds - {"c2p", "p2c"}:
        problem = f"has scores of the kind {min(unknown)!r}, which is not understood"
        raise CompileError(type(part).__name__, problem, "compile a model with c2p and p2c scores only")
    scale = (query.shape[-1] * (1 + len(kinds))) ** -0.5
    if not part.relative_attention or not kinds or rel_embeddings is None:
        mixed = attention(query, key, value, scale=scale)
    else:
        of_queries, of_keys = _disentangled_numbers(part, query, key, rel_embeddings)
        table = _disentangled_table(part)
        mixed = distance_attention(query, key, value, by_query=of_queries, by_key=of_keys, table=table, scale=scale)
    return mixed.transpose(1, 2).reshape(*hidden_states.shape[:2], -1), None


def _disentangled_heads(part: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[1, heads, n, head_dim]``."""
    if hasattr(part, "query_proj"):
        return (
            _heads(part, part.query_proj(hidden)),
            _heads(part, part.key_proj(hidden)),
            _heads(part, part.value_proj(hidden)),
        )
    if part.head_logits_proj is not None:
        raise CompileError(
            type(part).__name__,
            "mixes the scores of its heads (talking heads), so that no head has a softmax of its own scores",
            "compile a model with talking_head=False",
        )
    query, key, value = _heads(part, part.in_proj(hidden)).chunk(3, dim=-1)
    return query + _heads(part, part.q_bias[None, None]), key, value + _heads(part, part.v_bias[None, None])


def _disentangled_numbers(part: Any, query: Tensor, key: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
    """What queries and keys have for every distance, ``[1, heads, n, 2 * span]``."""
    names = ("pos_key_proj", "pos_query_proj") if hasattr(part, "query_proj") else ("pos_proj", "pos_q_proj")
    if getattr(part, "share_att_key", False):
        names = ("key_proj", "query_proj")
    found: list[Tensor | None] = []
    for kind, name, operand in (("c2p", names[0], query), ("p2c", names[1], key)):
        if kind in part.pos_att_type:
            of_distances = _heads(part, getattr(part, name)(embeddings[None, : 2 * _span(part)]))
            found.append(operand @ of_distances.transpose(-1, -2))
        else:
            found.append(None)
    of_queries, of_keys = found
    if of_queries is None:
        assert of_keys is not None
        of_queries = query[..., :1] * 0 + torch.zeros(2 * _span(part))
    return of_queries, of_keys


def _span(part: Any) -> int:
    return int(getattr(part, "pos_ebd_size", part.max_relative_positions))


def _disentangled_table(part: Any) -> Tensor:
    """The number of the embedding by ``j - i``: distances themselves, or buckets that grow with them."""
    buckets, span = getattr(part, "position_buckets", -1), _span(part)
    longest = part.max_relative_positions
    reach = 2 * longest if buckets > 0 else span + 1
    distance = torch.arange(reach, -reach - 1, -1)
    if buckets > 0:
        distance = _log_buckets(distance, buckets, longest)
    return (distance + span).clamp(0, 2 * span - 1)


def _log_buckets(distance: Tensor, buckets: int, longest: int) -> Tensor:
    """Distances below ``buckets / 2`` as they are, others by their logarithm, to whole numbers."""
    middle = buckets // 2
    size = distance.abs().clamp(min=middle)
    grown = torch.ceil(torch.log(size / middle) / math.log((longest - 1) / middle) * (middle - 1)) + middle
    return torch.where(distance.abs() <= middle, distance, (grown * distance.sign()).to(distance.dtype))


def _wavlm(
    part: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    position_bias: Tensor | None = None,
    index: int = 0,
    **_: Any,
) -> tuple[Tensor, None, Tensor]:
    """WavLM: T5's bias by distance, times a gate that each query computes for each head (arXiv 2110.13900).

    What the first layer hands to the others as ``position_bias`` is its embeddings ``[heads, buckets]`` here.
    """
    by_bucket: Tensor = part.rel_attn_embed.weight.transpose(0, 1) if position_bias is None else position_bias
    heads = _split(hidden_states, part.num_heads)
    summed = part.gru_rel_pos_linear(heads).view(*heads.shape[:-1], 2, 4).sum(-1)
    gate_a, gate_b = torch.sigmoid(summed).chunk(2, dim=-1)
    gate = gate_a * (gate_b * part.gru_rel_pos_const - 1.0) + 2.0
    query, key, value = (
        _split(linear(hidden_states), part.num_heads) for linear in (part.q_proj, part.k_proj, part.v_proj)
    )
    of_queries = gate * (by_bucket / part.scaling)[None, :, None]
    distance = torch.arange(-2 * part.max_distance, 2 * part.max_distance + 1)
    table = part._relative_positions_bucket(distance)
    mixed = distance_attention(query, key, value, by_query=of_queries, by_key=None, table=table, scale=part.scaling)
    return part.out_proj(mixed.transpose(1, 2).reshape(hidden_states.shape)), None, by_bucket


def _relative_key(
    part: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    relative_position_embeddings: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """wav2vec2-BERT and SeamlessM4T v2: products of queries with embeddings of distances.

    Shaw et al., arXiv 1803.02155, equation 5.
    """
    if part.position_embeddings_type != "relative_key":
        if relative_position_embeddings is not None:
            others["relative_position_embeddings"] = relative_position_embeddings
        found: tuple[Tensor, None] = type(part).forward(part, hidden_states, attention_mask, **others)
        return found
    if attention_mask is not None:
        problem = "is given a mask of its keys"
        raise CompileError(type(part).__name__, problem, "leave padding out: run inputs at their own length")
    query, key, value = (
        _split(linear(hidden_states), part.num_heads) for linear in (part.linear_q, part.linear_k, part.linear_v)
    )
    left, right = part.left_max_position_embeddings, part.right_max_position_embeddings
    reach = max(left, right)
    mixed = distance_attention(
        query,
        key,
        value,
        by_query=query @ part.distance_embedding.weight.transpose(0, 1),
        by_key=None,
        table=torch.arange(-reach, reach + 1).clamp(-left, right) + left,
        scale=part.scaling,
    )
    return part.linear_out(mixed.transpose(1, 2).reshape(hidden_states.shape)), None


def _speecht5(part: Any, hidden_states: Tensor, position_bias: Tensor | None = None, **others: Any) -> Any:
    """SpeechT5's encoder: products of queries with embeddings of distances, ``[distances, head_dim]`` here."""
    if position_bias is None:
        return type(part).forward(part, hidden_states, **others)
    query, key, value = (
        _split(linear(hidden_states), part.num_heads) for linear in (part.q_proj, part.k_proj, part.v_proj)
    )
    by_query = query @ position_bias.transpose(0, 1)
    reach = position_bias.shape[0] // 2
    table = (-torch.arange(-reach, reach + 1)).clamp(-reach, reach - 1) + reach
    mixed = distance_attention(query, key, value, by_query=by_query, by_key=None, table=table, scale=part.scaling)
    return part.out_proj(mixed.transpose(1, 2).reshape(hidden_states.shape)), None


def _speecht5_embeddings(part: Any, _hidden_states: Tensor) -> Tensor:
    """Those of all distances that are told apart, not one for every pair of tokens."""
    found: Tensor = part.pe_k.weight
    return found


def _one_chunk(part: Any, attention_mask: Any, _hidden_states: Tensor) -> None:
    """SeamlessM4T v2 within its first chunk, where every row sees all others; models end there."""
    if attention_mask is not None:
        problem = "is given a mask of its keys"
        raise CompileError(type(part).__name__, problem, "leave padding out: run inputs at their own length")


def _inkling(part: Any, relative_states: Tensor, *_positions: Tensor) -> Tensor:
    """Inkling: what each token has for every backward distance, ``[1, heads, n, extent + 1]``, the last for all others.

    Its attention reads them with :func:`backward_distances`.
    """
    return functional.pad((relative_states @ part.proj).transpose(1, 2), (0, 1))


def _inkling2(part: Any, hidden_states: Tensor, _distance: Tensor, position_ids: Tensor) -> Tensor:
    states = part.linear(hidden_states).view(*hidden_states.shape[:-1], part.num_heads, -1)
    return _inkling(part, part.norm(states, position_ids))


def backward_distances(part: Any) -> Tensor | None:
    """The table of distances of an attention that is given numbers by backward distance as its bias, if it is one."""
    if not any(hasattr(inner, "rel_extent") for inner in part.children()):
        return None
    extent = int(part.rel_extent)
    distance = -torch.arange(-extent, extent + 1)
    return torch.where((distance >= 0) & (distance < extent), distance, extent)


def _heads(part: Any, rows: Tensor) -> Tensor:
    return _split(rows, part.num_attention_heads)


def _split(rows: Tensor, heads: int) -> Tensor:
    return rows.view(*rows.shape[:-1], heads, -1).transpose(1, 2)


RELATIVE_POSITIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "DebertaEmbeddings": {"forward": _deberta_embeddings},
    "DebertaV2Embeddings": {"forward": _deberta_embeddings},
    "DisentangledSelfAttention": {"forward": _disentangled},
    "SeamlessM4Tv2ConformerEncoder": {"_apply_chunk_attention": _one_chunk},
    "SeamlessM4Tv2ConformerSelfAttention": {"forward": _relative_key},
    "InklingRelativeLogits": {"forward": _inkling},
    "Inkling2LoopRelativePositionBias": {"forward": _inkling2},
    "Inkling2RelativePositionBias": {"forward": _inkling2},
    "SpeechT5Attention": {"forward": _speecht5},
    "SpeechT5RelativePositionalEncoding": {"forward": _speecht5_embeddings},
    "Wav2Vec2BertSelfAttention": {"forward": _relative_key},
    "WavLMAttention": {"forward": _wavlm},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
