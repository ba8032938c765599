"""Mask tiles in device memory: a slot for each distinct one, the same slots for every length of as many blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.tiles import Segment, mask_tile, tile_key
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles

__all__ = ["MaskSlots", "TileRow", "tile_rows"]

TileRow = tuple[int, tuple[tuple[int, bool], ...]]
"""A query block and its key tiles, each with whether it is called with a mask."""


def tile_rows(rows: Iterable[tuple[int, tuple[Segment, ...]]], *, last: int, biased: bool) -> tuple[TileRow, ...]:
    """The key tiles of every query block; the ``last`` one always with a mask, so that it serves all lengths."""
    return tuple(
        (
            block,
            tuple(
                (tile, biased or not segment.full or tile == last)
                for segment in segments
                for tile in range(segment.start, segment.stop)
            ),
        )
        for block, segments in rows
    )


class MaskSlots:
    """The masks of the attentions that share mask, bias and geometry: additive ``[mask_heads, block_size, key_tile]``.

    Args:
        stage: One of the attentions.
        engine: Its geometry.
        bias: Its bias, or ``None``.
        tiles: Key tiles of the input.
        rows: Its rows, of :func:`tile_rows`.
        cross: Whether all blocks see what the first one sees, all keys of another axis.
    """

    def __init__(
        self,
        stage: AttentionStage,
        engine: AttentionEngine,
        bias: BiasTiles | None,
        *,
        tiles: int,
        rows: Iterable[TileRow],
        cross: bool,
    ) -> None:
        self._mask = stage.mask
        self._bias = bias
        self._cross = cross
        self._tiles = tiles
        self.shape = (engine.mask_heads, engine.block_size, engine.key_tile)
        self.nbytes = 4 * prod(self.shape)
        # Without padding: what hides it is added to the last tile of every length.
        self._sizes = {
            "block_size": engine.block_size,
            "key_tile": engine.key_tile,
            "length": tiles * engine.key_tile,
        }
        self._slots: dict[Hashable, int] = {}
        self._examples: list[tuple[int, int]] = []
        for block, row in rows:
            for tile, masked in row:
                if masked and self._slots.setdefault(self._key(block, tile), len(self._slots)) == len(self._examples):
                    self._examples.append((block, tile))

    def __len__(self) -> int:
        return len(self._examples)

    def slot(self, block: int, tile: int) -> int:
        """The slot of the mask of tile ``tile`` of query block ``block``."""
        return self._slots[self._key(block, tile)]

    def _key(self, block: int, tile: int) -> Hashable:
        at = 0 if self._cross else block
        pattern = tile_key(self._mask, at, tile, **self._sizes)
        return pattern, tile == self._tiles - 1, None if self._bias is None else self._bias.key(at, tile)

    def contents(self, length: int, *, padded: bool) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """The slots and their tiles for ``length`` keys; only those that the length changes if ``padded``."""
        for slot, (block, tile) in enumerate(self._examples):
            last = tile == self._tiles - 1
            if last or not padded:
                yield slot, self._tile(0 if self._cross else block, tile, length if last else None)

    def _tile(self, block: int, tile: int, length: int | None) -> npt.NDArray[np.float32]:
        values = np.zeros(self.shape, np.float32)
        if self._bias is not None:
            values += self._bias.tile(self._bias.key(block, tile))
        visible = mask_tile(self._mask, block, tile, **self._sizes)
        if length is not None:
            visible[:, length - tile * self.shape[2] :] = False
        values[:, ~visible] = -np.inf
        return values
