"""The mask tiles of one attention stage as tensors, each distinct one made once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.tiles import mask_tile, tile_key
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles

__all__ = ["MaskTiles"]

CACHE_BYTES = 256 << 20
"""Most bytes of mask tiles kept. Structured masks have a handful; ALiBi over many blocks has one for each distance."""


class MaskTiles:
    """Additive float32 tiles ``[mask_heads, block_size, key_tile]``: 0 or -inf, plus the bias. Thread-safe.

    Args:
        mask: Which keys are seen.
        bias: Added to the scores, or ``None``.
        mask_heads: 1, or the query heads.
        block_size, key_tile, length: In tokens.
        wrap: Makes a backend's tensor of an array.
        account: Told of bytes taken (and, negative, given back).
    """

    def __init__(
        self,
        mask: Mask,
        bias: BiasTiles | None,
        *,
        mask_heads: int,
        block_size: int,
        key_tile: int,
        length: int,
        wrap: Callable[[npt.NDArray[Any]], Any],
        account: Callable[[int], None],
    ) -> None:
        self._mask = mask
        self._bias = bias
        self._shape = (mask_heads, block_size, key_tile)
        self._sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
        self._wrap = wrap
        self._account = account
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, Any] = OrderedDict()
        self._nbytes = mask_heads * block_size * key_tile * np.dtype(np.float32).itemsize

    def tensor(self, block: int, tile: int, *, full: bool) -> Any:
        """The tensor for tile ``tile`` of query block ``block``; ``full`` says that the mask hides nothing in it."""
        hidden = None if full else (tile_key(self._mask, block, tile, **self._sizes),)
        key = (hidden, None if self._bias is None else self._bias.key(block, tile))
        with self._lock:
            found = self._tiles.get(key)
            if found is not None:
                self._tiles.move_to_end(key)
                return found
        made = self._wrap(self._make(block, tile, full=full))
        with self._lock:
            if key not in self._tiles:  # another thread may have made it meanwhile
                self._tiles[key] = made
                self._account(self._nbytes)
            while len(self._tiles) > 1 and len(self._tiles) * self._nbytes > CACHE_BYTES:
                self._tiles.popitem(last=False)
                self._account(-self._nbytes)
        return made

    def close(self) -> None:
        """Forgets every tile."""
        with self._lock:
            self._account(-self._nbytes * len(self._tiles))
            self._tiles.clear()

    def _make(self, block: int, tile: int, *, full: bool) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32]
        if self._bias is None:
            values = np.zeros(self._shape, np.float32)
        else:
            values = self._bias.tile(self._bias.key(block, tile))
        if not full:
            visible = mask_tile(self._mask, block, tile, **self._sizes)
            np.copyto(values, -np.inf, where=~visible)  # ten times as fast as assigning to an index
        return values
