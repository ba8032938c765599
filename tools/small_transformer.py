"""A small random transformer whose attention is any mask expression: what the tools compile to show a theorem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twoheads.compiler import attention

__all__ = ["SmallTransformer"]


class SmallTransformer(nn.Module):
    """Token numbers ``[1, n]`` to hidden states ``[1, n, heads * head_dim]``; equal seeds give equal weights.

    With ``classes`` also to logits ``[1, n, classes]``.

    Args:
        mask: The mask of every layer.
        layers, heads, head_dim: Its size.
        vocabulary: Token numbers it knows.
        seed: Of its weights.
        classes: Of the head; 0 for none.
    """

    def __init__(
        self,
        mask: str,
        *,
        layers: int = 2,
        heads: int = 4,
        head_dim: int = 16,
        vocabulary: int = 97,
        seed: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = heads * head_dim
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_Layer(mask, heads, head_dim) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, classes) if classes else None
        self.eval()

    def forward(self, ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The hidden states of every token, and with a head the logits."""
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        normed: Tensor = self.norm(hidden)
        return normed if self.head is None else (normed, self.head(normed))


class _Layer(nn.Module):
    def __init__(self, mask: str, heads: int, head_dim: int) -> None:
        super().__init__()
        self.mask, self.heads = mask, heads
        width = heads * head_dim
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        # Scores of about 6, so that a wrong mask or a forgotten key changes the result.
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.3 * (64 / width) ** 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        normed, length = self.norm(hidden), hidden.shape[1]
        query, key, value = (
            project(normed).view(1, length, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = attention(_rotate(query), _rotate(key), value, mask=self.mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(1, length, -1))
        added: Tensor = self.down(torch.nn.functional.silu(self.up(hidden)))
        return hidden + added


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions ``[1, heads, n, head_dim]``."""
    half = x.shape[-1] // 2
    frequencies = 100.0 ** -(torch.arange(half) / half)
    angles = torch.arange(x.shape[2])[:, None] * frequencies
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)
