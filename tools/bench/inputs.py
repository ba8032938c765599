"""What all contenders of a case read: the same random numbers in every process."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HEAD_DIM", "KV_HEADS", "Q_HEADS", "attention_inputs", "token_input"]

Q_HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
"""SmolLM2-135M's attention."""


def token_input(length: int, vocabulary: int) -> npt.NDArray[np.int64]:
    """Token numbers ``[length]``."""
    return np.random.default_rng(0).integers(0, vocabulary, length)


def attention_inputs(length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Queries ``[Q_HEADS, length, HEAD_DIM]``, keys and values ``[KV_HEADS, length, HEAD_DIM]``, float32."""
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((heads, length, HEAD_DIM), dtype=np.float32) for heads in (Q_HEADS, KV_HEADS, KV_HEADS)
    )
    return q, k, v
