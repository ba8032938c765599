"""Recurrent layers whose library code loops over tokens or blocks in their own forward, written with our scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from twoheads.compiler.frontend.torch.operators.scan_ops import decayed_attention, diagonal_scan
from twoheads.graphs.errors import CompileError

__all__ = ["RECURRENT_LAYERS", "require_none"]

_RATE = 8.0
"""The constant of the RG-LRU's gate (De et al., arXiv 2402.19427, equation 4)."""


def _lightning_attention(
    part: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    cache: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """MiniMax: linear attention with a constant decay a head (Qin et al., arXiv 2401.04658)."""
    require_none(part, attention_mask=attention_mask, cache=cache)
    batch, length, _width = hidden_states.shape
    states = part.act_fn(part.qkv_proj(hidden_states))
    states = states.reshape(batch, length, part.num_attention_heads, 3 * part.head_dim)
    q, k, v = (each.transpose(1, 2) for each in states.split(part.head_dim, dim=3))
    decay = torch.zeros_like(q[..., 0]) - part.slope_rate.reshape(1, -1, 1)
    mixed = cast("Tensor", decayed_attention(q, k, v, decay)).transpose(1, 2).reshape(batch, length, -1)
    gated = torch.sigmoid(part.output_gate(hidden_states)) * part.norm(mixed)
    return part.out_proj(gated), None


def _rglru(part: Any, activations: Tensor, position_ids: Tensor) -> Tensor:
    """RecurrentGemma's gated linear recurrence. A text begins at position 0, where the state is zero anyway."""
    batch, length, width = activations.shape
    heads = activations.reshape(batch, length, part.num_attention_heads, part.block_width)

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        made = torch.einsum("bnhi,hij->bnhj", heads, weight) + bias
        return torch.sigmoid(made.reshape(batch, length, width))

    decay = -_RATE * gate(part.recurrent_gate_weight, part.recurrent_gate_bias)
    decay = decay * functional.softplus(part.recurrent_param)
    first = (position_ids == 0)[:, :, None]
    scale = torch.where(first, torch.ones_like(decay), torch.sqrt(1 - torch.exp(2 * decay)))
    x = activations * gate(part.input_gate_weight, part.input_gate_bias) * scale
    return cast("Tensor", diagonal_scan(decay, x))


def _recurrent_block(
    part: Any, input_states: Tensor, position_ids: Tensor, attention_mask: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """RecurrentGemma's block around it, without the state that the library keeps in its modules."""
    branch = part.linear_x(input_states).transpose(1, 2)
    branch = part.conv_1d(branch)[..., : input_states.shape[1]].transpose(1, 2)
    return part.linear_out(part.rg_lru(branch, position_ids) * part.act_fn(part.linear_y(input_states))), None


def require_none(part: Any, **given: Any) -> None:
    """Refuses a mask of padding and an earlier state: nothing else says what a layer under a scan sees.

    Raises:
        CompileError: Names the layer and what it is given.
    """
    for name, value in given.items():
        if value is not None:
            problem = f"is given {name!r}, which its recurrence does not take"
            raise CompileError(type(part).__name__, problem, "compile the model without padding and caches")


RECURRENT_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "MiniMaxLightningAttention": {"forward": _lightning_attention},
    "RecurrentGemmaRecurrentBlock": {"forward": _recurrent_block},
    "RecurrentGemmaRglru": {"forward": _rglru},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
