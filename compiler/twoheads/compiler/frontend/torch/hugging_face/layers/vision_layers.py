"""Layers of vision models whose library code cuts the tokens of one image size in two, written over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.operators.attention_op import attention
from twoheads.graphs.errors import CompileError

__all__ = ["VISION_LAYERS"]


def _dinov3_angles(part: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of patches, with those of no turn for the class token and the registers before them."""
    cosine, sine = cast("tuple[Tensor, Tensor]", type(part).forward(part, pixel_values))
    before = (1 + part.config.num_register_tokens, cosine.shape[1])
    return torch.cat([torch.ones(before), cosine]), torch.cat([torch.zeros(before), sine])


def _dinov3(
    part: Any, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """DINOv3's attention, whose tokens are all turned by their angles."""
    if attention_mask is not None:
        raise CompileError(type(part).__name__, "is given a mask of its keys", "compile the model for whole images")
    query, key, value = (
        cast("Tensor", linear(hidden_states)).view(1, -1, part.num_heads, part.head_dim).transpose(1, 2)
        for linear in (part.q_proj, part.k_proj, part.v_proj)
    )
    cosine, sine = position_embeddings
    query, key = (rows * cosine + _half_turned(rows) * sine for rows in (query, key))
    mixed = attention(query, key, value, scale=part.scaling)
    return part.o_proj(mixed.transpose(1, 2).reshape(1, -1, part.embed_dim)), None


def _half_turned(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


VISION_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "DINOv3ViTAttention": {"forward": _dinov3},
    "DINOv3ViTRopePositionEmbedding": {"forward": _dinov3_angles},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
