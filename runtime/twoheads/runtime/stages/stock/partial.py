"""What the stock engine's two last columns say: log-sum-exps, which of them to doubt, and partial results merged."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["StockPartial", "stock_doubtful", "stock_partial"]

Array: TypeAlias = npt.NDArray[Any]


def stock_doubtful(result: Array, lse: Array, trusted: float) -> npt.NDArray[np.bool_]:
    """Queries whose shares can't be trusted, bool ``[heads, size]``.

    A vanishing synthetic share makes the log-sum-exp unknown. A vanishing real share does so only where nothing was
    seen before; elsewhere it means that these keys do not matter beside those of before.
    """
    return (result[..., -1] < trusted) | (np.isneginf(lse) & (result[..., -2] < trusted))


def stock_partial(result: Array, score: Array) -> tuple[Array, Array]:
    """``(out, lse)`` of the real keys from a call's result ``[..., v_head_dim + 2]`` and the synthetic scores."""
    real, synthetic = result[..., -2], result[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = score + np.log(real / synthetic)
    return result[..., :-2] / np.where(real > 0, real, 1)[..., None], lse


class StockPartial:
    """The attention over the keys seen so far: ``out [heads, block, v_head_dim]`` and ``lse [heads, block]``."""

    def __init__(self, heads: int, block: int, width: int) -> None:
        self.out = np.zeros((heads, block, width), np.float32)
        self.lse = np.zeros((heads, block), np.float32)
        self.fresh = True

    def reset(self, sinks: npt.NDArray[np.float32] | None) -> None:
        """Nothing seen but, where there are any, the learned sinks ``[heads]``: logits without a value."""
        self.out[...] = 0
        self.lse[...] = -np.inf if sinks is None else sinks[:, None]
        self.fresh = True

    def merge(self, size: int, result: Array, score: Array) -> None:
        """Adds a call's ``result [heads, size, v_head_dim + 2]`` that was made with the synthetic scores ``score``."""
        out, lse = self.out[:, :size], self.lse[:, :size]
        real, synthetic = result[..., -2].astype(np.float32), result[..., -1].astype(np.float32)
        before = synthetic * np.exp(lse - score)
        total = real + before
        divisor = np.where(total > 0, total, 1)
        out *= (before / divisor)[..., None]
        out += result[..., :-2] / divisor[..., None]
        with np.errstate(divide="ignore"):
            lse[...] = score + np.log(total / synthetic)
        self.fresh = False
