"""One value of a run in device memory or pinned host memory, laid out as host stores lay it out."""

from __future__ import annotations

from math import prod

import numpy as np

from twoheads.graphs.program.program import Value
from twoheads.runtime.backends.device_protocol import DeviceArray, HostBytes, Rows
from twoheads.runtime.device.layout import is_direct

__all__ = ["DeviceValue"]


class DeviceValue:
    """A value as ``[tiles, *block_shape(tile)]``, see :class:`~twoheads.runtime.memory.stores.ValueStore`.

    Args:
        value: What is stored.
        place: Its address, or its bytes in pinned host memory.
        rows: Rows along its axis with which ``place`` was laid out, 1 for a row value.
        block_size: Tokens of a block.
        tile: Tokens of a tile, a multiple of ``block_size``.
    """

    def __init__(self, value: Value, place: int | HostBytes, *, rows: int, block_size: int, tile: int) -> None:
        self.value = value
        self._place = place
        self._block_size = block_size
        self.tile_tokens = 1 if value.axis is None else tile
        self.tiles = 1 if value.axis is None else -(-rows // tile)
        self.blocks = 1 if value.axis is None else -(-rows // block_size)
        self.tile_shape = value.block_shape(tile)
        self.block_shape = value.block_shape(block_size)
        itemsize = np.dtype(value.dtype).itemsize
        self.tile_bytes = prod(self.tile_shape) * itemsize
        if value.axis is None:
            self.sizes = (1, 1, self.tile_bytes)
        else:
            at = value.token_axis
            self.sizes = (prod(self.tile_shape[:at]), tile, prod(self.tile_shape[at + 1 :]) * itemsize)
        self.in_place = isinstance(place, int) and is_direct(value, block_size, tile)
        """Whether engines may read and write its blocks where they are."""

    @property
    def on_host(self) -> bool:
        """Whether it is in pinned host memory."""
        return not isinstance(self._place, int)

    @property
    def host_bytes(self) -> HostBytes:
        """Its bytes in pinned host memory."""
        assert not isinstance(self._place, int)
        return self._place[: self.nbytes]

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles."""
        return self.tiles * self.tile_bytes

    def _at(self, offset: int) -> int | HostBytes:
        return self._place + offset if isinstance(self._place, int) else self._place[offset:]

    def address(self, tile: int) -> int:
        """The address of tile ``tile``; it must be on the device."""
        at = self._at(tile * self.tile_bytes)
        assert isinstance(at, int)
        return at

    def tile(self, tile: int) -> DeviceArray:
        """Tile ``tile``, which must be on the device."""
        return DeviceArray(self.address(tile), self.value.dtype, self.tile_shape)

    def block(self, block: int) -> DeviceArray:
        """Block ``block``, which must be :attr:`in_place`; of a row value all of it."""
        rows = self.block_rows(block)
        assert isinstance(rows.place, int)
        return DeviceArray(rows.place, self.value.dtype, self.block_shape)

    def block_rows(self, block: int) -> Rows:
        """The bytes of block ``block``."""
        if self.value.axis is None:
            return self.tile_rows(0)
        outer, tokens, inner = self.sizes
        tile, part = divmod(block, tokens // self._block_size)
        width = self._block_size * inner
        return Rows(self._at(tile * self.tile_bytes + part * width), width, outer, tokens * inner)

    def tile_rows(self, tile: int) -> Rows:
        """The bytes of tile ``tile``."""
        return Rows(self._at(tile * self.tile_bytes), self.tile_bytes)

    def all_rows(self) -> Rows:
        """The bytes of all tiles."""
        return Rows(self._at(0), self.nbytes)

    def token_rows(self, start: int, stop: int) -> Rows:
        """The bytes of tokens ``[start, stop)`` of a value ``[1, n, ...]``, whose tokens follow one another."""
        inner = self.sizes[2]
        return Rows(self._at(start * inner), (stop - start) * inner)
