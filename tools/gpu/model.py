"""The random decoder that is checked and measured: torch's ``scaled_dot_product_attention`` and nothing unusual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

__all__ = ["LARGE", "SMALL", "Decoder", "Size", "example"]


@dataclass(frozen=True, slots=True)
class Size:
    """Of a decoder."""

    layers: int
    heads: int
    head_dim: int
    vocabulary: int


SMALL = Size(2, 4, 32, 97)
LARGE = Size(12, 12, 64, 8192)
"""As wide and deep as BERT's base."""


def example() -> tuple[Tensor]:
    """What the model is captured with."""
    return (torch.arange(40)[None],)


class Decoder(nn.Module):
    """Token numbers ``[1, n]`` to hidden states ``[1, n, heads * head_dim]``; weights of a fixed seed.

    Positions are not encoded: with a causal mask every token still sees another number of tokens.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = size
        width = size.heads * size.head_dim
        self.embedding = nn.Embedding(size.vocabulary, width)
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(width)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        """The hidden states of every token."""
        hidden: Tensor = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        normed: Tensor = self.norm(hidden)
        return normed


class _Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.heads * size.head_dim
        self.heads, self.head_dim = size.heads, size.head_dim
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.before(hidden)
        query, key, value = (self._split(part(normed)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        normed = self.between(hidden)
        out: Tensor = hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return out

    def _split(self, rows: Tensor) -> Tensor:
        """``[1, n, width]`` to ``[1, heads, n, head_dim]``."""
        return rows.view(*rows.shape[:2], self.heads, self.head_dim).transpose(1, 2)
