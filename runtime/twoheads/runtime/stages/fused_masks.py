"""The masks of engines that attend to several key tiles at once, added to scores."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.tiles import mask_tile, tile_key
from twoheads.runtime.execution.run_state import RunState

__all__ = ["HIDDEN", "NARROW_HIDDEN", "FusedMasks"]

HIDDEN = -1e30
"""Added to the scores of hidden keys: finite, so that a row of padding that sees nothing stays a row of numbers."""

NARROW_HIDDEN = -3e4
"""The same in half precision: half of its range, so that a score may be added to it."""


class FusedMasks:
    """The additive masks ``[1, block, tiles * block]`` of one stage, each distinct one made once. Thread-safe.

    Args:
        run: For whose engines.
        mask: Which keys a query sees.
        length: Tokens there are.
    """

    def __init__(self, run: RunState, mask: Mask, length: int) -> None:
        size = run.program.block_size
        self._mask = mask
        self._sizes = {"block_size": size, "key_tile": size, "length": length}
        self._shape = (size, size)
        self._hidden = np.float32(NARROW_HIDDEN if run.engines.narrow else HIDDEN)
        self._wrap = run.backend.tensor
        self._lock = threading.Lock()
        self._made: dict[Hashable, Any] = {}

    def tensor(self, block: int, tiles: tuple[int | None, ...]) -> Any:
        """The mask of query block ``block`` over ``tiles``; of those that are ``None``, nothing is seen."""
        key = tuple(None if tile is None else tile_key(self._mask, block, tile, **self._sizes) for tile in tiles)
        with self._lock:
            if key not in self._made:
                parts = [self._tile(block, tile) for tile in tiles]
                self._made[key] = self._wrap(np.ascontiguousarray(np.concatenate(parts, axis=1)[None]))
            return self._made[key]

    def _tile(self, block: int, tile: int | None) -> npt.NDArray[np.float32]:
        if tile is None:
            return np.full(self._shape, self._hidden)
        visible = mask_tile(self._mask, block, tile, **self._sizes)
        return np.where(visible, np.float32(0), self._hidden)
