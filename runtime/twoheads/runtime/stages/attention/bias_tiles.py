"""Additive attention biases that depend on head and distance only: T5's buckets, ALiBi's slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BiasTiles"]


class BiasTiles:
    """Tiles of ``bias[h, i, j] = table[h, clip(j - i, -reach, reach) + reach] + slope[h] * (j - i)``.

    Args:
        table: ``[heads, 2 * reach + 1]``, or ``None``.
        slope: ``[heads]``, or ``None``.
        block_size, key_tile: Rows and columns of a tile.
    """

    def __init__(
        self, table: npt.NDArray[Any] | None, slope: npt.NDArray[Any] | None, *, block_size: int, key_tile: int
    ) -> None:
        self._table = None if table is None else np.asarray(table, np.float32)
        self._slope = None if slope is None else np.asarray(slope, np.float32)
        self._reach = 0 if table is None else table.shape[1] // 2
        self._block_size = block_size
        self._key_tile = key_tile

    def key(self, block: int, tile: int) -> int:
        """Equal for tiles of equal bias: the distance, clipped where the table is constant over the whole tile."""
        offset = tile * self._key_tile - block * self._block_size
        if self._slope is not None:
            return offset
        return min(max(offset, -self._reach - self._key_tile), self._reach + self._block_size)

    def tile(self, key: int) -> npt.NDArray[np.float32]:
        """The tile ``[heads, block_size, key_tile]`` for a :meth:`key`.

        A tile is constant along its diagonals: it is a strided view of one row of distances, copied once.
        """
        distance = np.arange(key - self._block_size + 1, key + self._key_tile, dtype=np.int64)
        heads = len(self._table) if self._table is not None else len(self._slope) if self._slope is not None else 1
        line = np.zeros((heads, len(distance)), np.float32)
        if self._table is not None:
            line += self._table[:, np.clip(distance, -self._reach, self._reach) + self._reach]
        if self._slope is not None:
            line += self._slope[:, None] * distance.astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(line, self._key_tile, axis=1)
        return np.ascontiguousarray(windows[:, ::-1])
