"""A model that is nothing but attention: its features are queries, keys and values. For measuring attention alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from twoheads.compiler import attention

__all__ = ["AttentionOnly", "features"]


class AttentionOnly(nn.Module):
    """Features ``[1, n, (q_heads + 2 kv_heads) * head_dim]`` to the attention's output ``[1, n, q_heads * head_dim]``.

    Args:
        q_heads, kv_heads, head_dim: Its geometry.
        mask: A mask expression.
    """

    def __init__(self, q_heads: int, kv_heads: int, head_dim: int, mask: str) -> None:
        super().__init__()
        self.sizes = [q_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.head_dim = head_dim
        self.mask = mask
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The attention's output, heads side by side."""
        heads = torch.split(x * self.one, self.sizes, -1)
        q, k, v = (part.reshape(1, x.shape[1], -1, self.head_dim).transpose(1, 2) for part in heads)
        return attention(q, k, v, mask=self.mask).transpose(1, 2).flatten(2) * self.one

    def example(self) -> tuple[Tensor]:
        """An example input."""
        return (torch.zeros(1, 11, sum(self.sizes)),)


def features(q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The features ``[n, width]`` of queries ``[q_heads, n, head_dim]``, and keys and values of ``kv_heads``."""
    rows = [part.swapaxes(0, 1).reshape(part.shape[1], -1) for part in (q, k, v)]
    return np.concatenate(rows, 1).astype(np.float32)
