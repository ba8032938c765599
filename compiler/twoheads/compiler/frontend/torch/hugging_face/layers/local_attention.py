"""Encoders that attend within a window, which the library computes in overlapping chunks of padded inputs.

Longformer and LED pad an input to whole windows, LongT5 to whole blocks, and hide the padding again. A window mask says
the same of the tokens themselves. Their other attention, to tokens that are chosen for a task or made of blocks of
tokens, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.operators.attention_op import attention
from twoheads.graphs.errors import CompileError

__all__ = ["LOCAL_ATTENTION", "require_no_padding"]


def _longformer_model(
    part: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, global_attention_mask: Any = None, **_: Any
) -> Any:
    from transformers.models.longformer.modeling_longformer import LongformerBaseModelOutputWithPooling

    _require_local("longformer", global_attention_mask)
    hidden = part.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    for layer in part.encoder.layer:
        hidden = layer(hidden)[0]
    pooled = part.pooler(hidden) if part.pooler is not None else None
    return LongformerBaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def _longformer_attention(part: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    shape = (*hidden_states.shape[:-1], part.num_heads, part.head_dim)
    heads = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (part.query, part.key, part.value))
    reach = part.one_sided_attn_window_size
    mixed = attention(*heads, mask=f"window({reach}, {reach})")
    return (mixed.transpose(1, 2).reshape(hidden_states.shape),)


def _led_encoder(
    part: Any, input_ids: Tensor, attention_mask: Any = None, global_attention_mask: Any = None, **_: Any
) -> Any:
    from transformers.models.led.modeling_led import LEDEncoderBaseModelOutput

    _require_local("led", global_attention_mask)
    require_no_padding(part, attention_mask)
    hidden = part.layernorm_embedding(part.embed_tokens(input_ids) + part.embed_positions(input_ids.shape))
    for layer in part.layers:
        hidden = layer(hidden, None)[0]
    return LEDEncoderBaseModelOutput(last_hidden_state=hidden)


def _require_local(name: str, global_attention_mask: Any) -> None:
    if global_attention_mask is not None:
        raise CompileError(
            name,
            "its head gives some tokens global attention, which is computed by other weights than that of the rest",
            "compile the base model or its masked language model, whose attention is local",
        )


def _longt5_stack(part: Any, input_ids: Tensor, attention_mask: Any = None, **others: Any) -> Any:
    """LongT5's encoder; its decoder is T5's (Guo et al., arXiv 2112.07916, section 3.1)."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    if part.is_decoder:
        return type(part).forward(part, input_ids, attention_mask=attention_mask, **others)
    require_no_padding(part, attention_mask)
    hidden, bias = part.embed_tokens(input_ids), None
    for layer in part.block:
        hidden, bias = layer(hidden, None, bias)[:2]
    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=part.final_layer_norm(hidden))


def _longt5_attention(
    part: Any, hidden_states: Tensor, mask: Any = None, position_bias: Tensor | None = None, **_: Any
) -> tuple[Tensor, Tensor | None]:
    """Scores without a factor, a bias by distance that the first layer makes for all, a window on both sides."""
    require_no_padding(part, mask)
    if position_bias is None and part.has_relative_attention_bias:
        position_bias = _longt5_bias(part, hidden_states.shape[1])
    shape = (*hidden_states.shape[:-1], part.n_heads, part.key_value_proj_dim)
    heads = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (part.q, part.k, part.v))
    radius = part.local_radius
    mixed = attention(*heads, mask=f"window({radius}, {radius})", scale=1.0, bias=position_bias)
    return part.o(mixed.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)), position_bias


def _longt5_bias(part: Any, length: Any) -> Tensor:
    """``[1, heads, n, n]``, of the distance between two tokens."""
    positions = torch.arange(length)
    buckets = part._relative_position_bucket(
        positions[None, :] - positions[:, None],
        bidirectional=not part.is_decoder,
        num_buckets=part.relative_attention_num_buckets,
        max_distance=part.relative_attention_max_distance,
    )
    made: Tensor = part.relative_attention_bias(buckets).permute(2, 0, 1)[None]
    return made


def require_no_padding(part: Any, mask: Any) -> None:
    """Refuses a mask of keys, for layers that are written without one.

    Raises:
        CompileError: Names the layer.
    """
    if mask is not None:
        problem = "is given a mask of its keys"
        raise CompileError(type(part).__name__, problem, "leave padding out: run inputs at their own length")


LOCAL_ATTENTION: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "LEDEncoder": {"forward": _led_encoder},
    "LEDEncoderSelfAttention": {"forward": _longformer_attention},
    "LongT5LocalAttention": {"forward": _longt5_attention},
    "LongT5Stack": {"forward": _longt5_stack},
    "LongformerModel": {"forward": _longformer_model},
    "LongformerSelfAttention": {"forward": _longformer_attention},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
