"""Layers that convolve tokens with kernels of their own making, written as sums of shifted rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from twoheads.compiler.frontend.torch.operators.attention_op import attention_op
from twoheads.graphs.errors import CompileError

__all__ = ["CONV_LAYERS"]


def _convbert(
    part: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, encoder_hidden_states: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """ConvBERT: half of the heads attend, the others weigh the rows around a token (arXiv 2008.02496, section 3.2)."""
    if encoder_hidden_states is not None:
        raise CompileError(type(part).__name__, "attends to another model's tokens", "compile the encoder alone")
    heads, size, width = part.num_attention_heads, part.attention_head_size, part.conv_kernel_size
    shape = (1, hidden_states.shape[1], heads)
    mixed = part.query(hidden_states)
    query, key, value = (
        rows.view(*shape, size).transpose(1, 2) for rows in (mixed, part.key(hidden_states), part.value(hidden_states))
    )
    attended = attention_op(query, key, value, attention_mask, None, None, size**-0.5, 0.0).transpose(1, 2)
    around = part.key_conv_attn_layer(hidden_states.transpose(1, 2)).transpose(1, 2)
    kernel = cast("Tensor", part.conv_kernel_layer(around * mixed)).view(*shape, width).softmax(-1)
    reach = (width - 1) // 2
    rows = functional.pad(part.conv_out_layer(hidden_states), (0, 0, reach, reach))
    shifted = (rows[:, at : at + hidden_states.shape[1]].reshape(*shape, size) for at in range(width))
    convolved = sum(row * kernel[..., at : at + 1] for at, row in enumerate(shifted))
    return torch.cat([attended, cast("Tensor", convolved)], 2).reshape(*shape[:2], -1), None


CONV_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {"ConvBertSelfAttention": {"forward": _convbert}}
"""By the name of the library's class: the methods that are replaced while it is captured."""
