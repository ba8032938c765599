"""Small random transformers as plain torch modules, with every feature that the tile lowering knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twoheads.compiler import attention


@dataclass(frozen=True)
class Features:
    """What a random model is made of. ``masks`` are cycled through by the layers."""

    masks: tuple[str, ...] = ("causal",)
    layers: int = 2
    q_heads: int = 4
    kv_heads: int = 4
    head_dim: int = 16
    v_head_dim: int | None = None
    softcap: float = 0.0
    sinks: bool = False
    bias: str = ""
    positions: str = "rope"
    kernel: str = "ours"
    vocabulary: int = 61


class RandomTransformer(nn.Module):
    """Token numbers ``[1, n]`` to ``(hidden [1, n, width], logits [1, n, vocabulary])``."""

    table: Tensor

    def __init__(self, features: Features, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = features
        width = 32
        self.embedding = nn.Embedding(features.vocabulary, width)
        if features.positions == "learned":
            self.positions = nn.Embedding(150, width)
        if features.positions == "sliced":
            self.register_buffer("table", torch.randn(1, 150, width))
        self.layers = nn.ModuleList(
            _Layer(features, width, features.masks[at % len(features.masks)]) for at in range(features.layers)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, features.vocabulary)
        self.eval()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embedding(ids)
        if self.features.positions == "learned":
            hidden = hidden + self.positions(torch.arange(ids.shape[1]))
        if self.features.positions == "sliced":
            hidden = hidden + self.table[:, : ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm(hidden)
        return hidden, self.head(hidden)


class _Layer(nn.Module):
    slopes: Tensor

    def __init__(self, features: Features, width: int, mask: str) -> None:
        super().__init__()
        self.features, self.mask = features, mask
        values = features.v_head_dim or features.head_dim
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, features.q_heads * features.head_dim)
        self.key = nn.Linear(width, features.kv_heads * features.head_dim, bias=False)
        self.value = nn.Linear(width, features.kv_heads * values)
        self.out = nn.Linear(features.q_heads * values, width)
        self.up = nn.Linear(width, 48)
        self.down = nn.Linear(48, width)
        # Scores wide enough (about 10) that a wrong mask, scale or softcap changes the result.
        nn.init.normal_(self.query.weight, std=0.3)
        nn.init.normal_(self.key.weight, std=0.3)
        if features.sinks:
            self.sinks = nn.Parameter(torch.randn(features.q_heads))
        if features.bias == "alibi":
            self.register_buffer("slopes", 0.5 ** torch.arange(1.0, features.q_heads + 1))
        if features.bias == "buckets":
            self.buckets = nn.Embedding(11, features.q_heads)

    def forward(self, hidden: Tensor) -> Tensor:
        features, length = self.features, hidden.shape[1]
        normed = self.norm(hidden)
        q = self.query(normed).view(1, length, features.q_heads, -1).transpose(1, 2)
        k = self.key(normed).view(1, length, features.kv_heads, -1).transpose(1, 2)
        v = self.value(normed).view(1, length, features.kv_heads, -1).transpose(1, 2)
        if features.positions == "rope":
            q, k = _rotate(q), _rotate(k)
        mixed = self._attend(q, k, v).transpose(1, 2).reshape(1, length, -1)
        hidden = hidden + self.out(mixed)
        return hidden + self.down(torch.nn.functional.silu(self.up(hidden)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        features, positions = self.features, torch.arange(q.shape[2])
        distance = positions[None, :] - positions[:, None]
        if features.kernel == "sdpa":
            return self._sdpa(q, k, v, distance)
        bias = None
        if features.bias == "alibi":
            bias = self.slopes[:, None, None] * distance
        if features.bias == "buckets":
            bias = self.buckets(distance.clamp(-5, 5) + 5).permute(2, 0, 1)
        sinks = self.sinks if features.sinks else None
        return attention(q, k, v, mask=self.mask, softcap=features.softcap, sinks=sinks, bias=bias)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor) -> Tensor:
        sdpa = torch.nn.functional.scaled_dot_product_attention
        grouped = q.shape[1] != k.shape[1]
        if self.mask == "causal":
            return sdpa(q, k, v, is_causal=True, enable_gqa=grouped)
        if self.mask == "full":
            return sdpa(q, k, v, enable_gqa=grouped)
        visible = (distance <= 0) & (distance > -12)  # a causal window of 12, as a model would compute it
        additive = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
        return sdpa(q, k, v, attn_mask=visible if self.mask == "bool window" else additive, enable_gqa=grouped)


def _rotate(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    frequencies = 100.0 ** -(torch.arange(half) / half)
    angles = torch.arange(x.shape[2])[:, None] * frequencies
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = rotated[..., :half], rotated[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
