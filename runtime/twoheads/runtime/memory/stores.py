"""Where the token values of a run live, in memory or in mapped files: an engine reads and writes blocks in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Value
from twoheads.runtime.memory.mapped_file import MappedFile, value_file
from twoheads.runtime.memory.spare_memory import KEPT_BYTES, SpareMemory

__all__ = ["Stores", "ValueStore"]


MakeFile = Callable[[int], MappedFile]
Bytes = npt.NDArray[np.uint8]


def _new_memory(nbytes: int) -> Bytes:
    return np.empty(nbytes, np.uint8)


class ValueStore:
    """One value of all tokens as ``[tiles, *block_shape(tile)]``: every tile is contiguous.

    A tile is one block (block-major), or as many blocks as a key tile holds for the keys and values of attention
    (tile-major), where a block is then a slice of its tile. A row value is one tile.

    Args:
        value: What is stored.
        length: Rows along its axis, 1 for a row value.
        block_size: Tokens of a block.
        tile: Tokens of a tile, a multiple of ``block_size``.
        file: Makes the file that holds as many bytes; ``None`` to hold it in memory.
        memory: Gives as many bytes of memory, contents undefined.
        held: The tiles that are held at all, ascending; ``None`` for all of them.

    Raises:
        TwoheadsError: The disk has no room for the file.
    """

    def __init__(
        self,
        value: Value,
        *,
        length: int,
        block_size: int,
        tile: int,
        file: MakeFile | None = None,
        memory: Callable[[int], Bytes] = _new_memory,
        held: Sequence[int] | None = None,
    ) -> None:
        self.value = value
        self.length = length
        self.block_size = block_size
        self.blocks_per_tile = 1 if value.axis is None else tile // block_size
        self._tiles = 1 if value.axis is None else -(-length // tile)
        self._slots: Mapping[int, int] | None = None if held is None else {tile: slot for slot, tile in enumerate(held)}
        shape = (self._tiles if held is None else len(held), *value.block_shape(tile))
        nbytes = prod(shape) * np.dtype(value.dtype).itemsize
        self._file = None if file is None else file(nbytes)
        self.memory: Bytes | None = None
        """Its bytes, where no file holds it."""
        self.array: npt.NDArray[Any]
        if self._file is None:
            self.memory = memory(nbytes)
            self.array = self.memory.view(value.dtype).reshape(shape)
        else:
            self.array = self._file.array(shape, value.dtype)
        # A slice of a tile is contiguous only where nothing but 1 stands before the token axis.
        self.direct = self.blocks_per_tile == 1 or prod(value.block_shape(tile)[: value.token_axis]) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.array.nbytes

    @property
    def spilled(self) -> bool:
        """Whether it lives in a file whose pages are let go."""
        return self._file is not None and self._file.window

    @property
    def path(self) -> Path | None:
        """Its file, if it has one."""
        return None if self._file is None else self._file.path

    def flush(self) -> None:
        """Returns when the disk has the value, if it has a file."""
        if self._file is not None:
            self._file.flush()

    def touch(self, tile: int, nbytes: int) -> None:
        """Notes that ``nbytes`` of tile ``tile`` are about to be read or written, and has the next tile fetched.

        Whoever reads :attr:`array` itself tells it here, the methods do so themselves.
        """
        if self._file is not None:
            self._file.touch(nbytes)
            tile_bytes = self.nbytes // len(self.array)
            self._file.prefetch((tile + 1) * tile_bytes, tile_bytes)

    def block(self, block: int) -> npt.NDArray[Any]:
        """Block ``block`` as a view ``block_shape(block_size)``; contiguous if :attr:`direct`.

        A row value is the same in every block.
        """
        if self.value.axis is None:
            return self.tile(0)
        tile, part = divmod(block, self.blocks_per_tile)
        if self.blocks_per_tile == 1:
            return self.tile(tile)
        return self._tokens(tile, part * self.block_size, (part + 1) * self.block_size)

    def holds(self, block: int) -> bool:
        """Whether block ``block`` is held."""
        return self._slots is None or block // self.blocks_per_tile in self._slots

    def tile(self, tile: int) -> npt.NDArray[Any]:
        """Tile ``tile`` as a contiguous view."""
        view: npt.NDArray[Any] = self.array[self._slot(tile), ...]  # an array where a value is one number, too
        self.touch(tile, view.nbytes)
        return view

    def tensors(self, wrap: Callable[[npt.NDArray[Any]], Any]) -> Mapping[int, Any]:
        """Every tile that is held as a backend's tensor, by its number."""
        numbers = range(self._tiles) if self._slots is None else self._slots
        return {number: wrap(self.array[self._slot(number)]) for number in numbers}

    def _slot(self, tile: int) -> int:
        """Where ``tile`` lies in :attr:`array`."""
        return tile if self._slots is None else self._slots[tile]

    def _tokens(self, tile: int, start: int, stop: int) -> npt.NDArray[Any]:
        index: Any = (self._slot(tile), *(slice(None),) * self.value.token_axis, slice(start, stop))
        view: npt.NDArray[Any] = self.array[index]
        self.touch(tile, view.nbytes)
        return view

    def parts(self, start: int, stop: int) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """Views of tokens ``[start, stop)``, one for each tile, and where in them it begins; of a row value all."""
        if self.value.axis is None:
            yield self.tile(0), 0
            return
        size = self.block_size * self.blocks_per_tile
        at = start
        while at < stop:
            tile, offset = divmod(at, size)
            end = min(stop, (tile + 1) * size)
            yield self._tokens(tile, offset, offset + end - at), at - start
            at = end

    def fill(self, source: npt.NDArray[Any]) -> None:
        """Copies ``source``, shaped as the value with ``length`` tokens, and zeroes the padding."""
        if self.value.axis is None:
            np.copyto(self.array[0], source)
            return
        size = self.block_size * self.blocks_per_tile
        before = (slice(None),) * self.value.token_axis
        for tile in range(len(self.array)):
            stop = min(self.length - tile * size, size)
            part = source[(*before, slice(tile * size, tile * size + stop))]
            np.copyto(self._tokens(tile, 0, stop), part)
        self.zero_padding()

    def whole(self) -> npt.NDArray[Any]:
        """The value with ``length`` tokens; a view where tokens lie one after the other in memory, else a copy."""
        if self.value.axis is None:
            return self.tile(0)
        axis = self.value.token_axis
        if prod(self.array.shape[1 : axis + 1]) == 1:
            flat = self.array.reshape(*self.array.shape[1 : axis + 1], -1, *self.array.shape[axis + 2 :])
        else:
            flat = np.concatenate(self.array, axis)
        index: Any = (*(slice(None),) * axis, slice(0, self.length))
        view: npt.NDArray[Any] = flat[index]
        return view

    def zero_padding(self) -> None:
        """Zeroes what lies beyond ``length``: whatever an engine makes of padding must not reach a real token."""
        if self.value.axis is None:
            return
        size = self.block_size * self.blocks_per_tile
        rest = self.length % size
        last = self._tiles - 1
        if rest and (self._slots is None or last in self._slots):
            self._tokens(last, rest, size)[...] = 0

    def zero_rows(self, block: int, start: int) -> None:
        """Zeroes block ``block`` from its row ``start`` on."""
        index: Any = (*(slice(None),) * self.value.token_axis, slice(start, None))
        self.block(block)[index] = 0

    def rows(self) -> npt.NDArray[Any]:
        """A block-major value ``[1, n, width]`` as a view ``[padded tokens, width]``.

        Of a value in a file, take few rows of it: their pages stay until others of the value are touched.
        """
        return self.array.reshape(-1, self.array.shape[-1])

    def places(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the rows ``positions``, whose tiles are held, lie in :meth:`rows`."""
        if self._slots is None:
            return positions
        tiles, within = np.divmod(positions, self.block_size * self.blocks_per_tile)
        slots = np.array([self._slot(int(tile)) for tile in tiles], np.int64)
        places: npt.NDArray[np.int64] = slots * (self.block_size * self.blocks_per_tile) + within
        return places

    def take(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows ``positions`` of a block-major value, a copy."""
        rows: npt.NDArray[Any] = self.rows()[self.places(positions)]
        return rows


class Stores:
    """The values alive in a run, and the bytes they and their companions take.

    ``peak_bytes`` is the most held in memory, ``peak_disk_bytes`` in files, ``spilled_bytes`` all that went to files.

    Memory of released values is used again for values of the same size, as every layer has them. With what waits for
    that, a run never has more than ``peak_bytes``, or than it found waiting in ``spare``.

    Args:
        rows: Rows of a value along its axis, 1 for a row value.
        block_size: Tokens of a block.
        key_tile: Tokens of a key tile.
        tiled: Names of the values that attention reads as keys or values.
        spilled: Names of the values that live in files.
        folder: Where these files are.
        keep: Give every value a file that lasts until it is released, whatever happens to the process.
        spare: Memory from earlier runs.
    """

    def __init__(
        self,
        *,
        rows: Callable[[Value], int],
        block_size: int,
        key_tile: int,
        tiled: Iterable[str],
        spilled: Iterable[str] = (),
        folder: Path | None = None,
        keep: bool = False,
        spare: SpareMemory | None = None,
    ) -> None:
        self._keep = keep
        self._spare = SpareMemory() if spare is None else spare
        self._found = self._spare.nbytes
        self._rows = rows
        self._block_size = block_size
        self._key_tile = key_tile
        self._tiled = frozenset(tiled)
        self._stores: dict[str, ValueStore] = {}
        self._spilled = frozenset(spilled)
        self._folder = folder
        self._live = 0
        self._on_disk = 0
        self.peak_bytes = 0
        self.peak_disk_bytes = 0
        self.spilled_bytes = 0

    def allocate(self, value: Value, *, reopen: bool = False, blocks: Iterable[int] | None = None) -> ValueStore:
        """A store for ``value``, its contents undefined, or with ``reopen`` what its kept file holds.

        Of ``blocks`` alone, if they are given: the store holds the tiles in which they lie.

        Raises:
            TwoheadsError: The value lives in a file, and the disk has no room for it, or the kept file is not there.
        """
        tile = self._key_tile if value.name in self._tiled else self._block_size
        sizes = {"length": self._rows(value), "block_size": self._block_size, "tile": tile}
        held = None
        if blocks is not None and value.axis is not None:
            held = sorted({block * self._block_size // tile for block in blocks})
        file = self._file(value, reopen=reopen)
        store = ValueStore(value, **sizes, file=file, memory=self._spare.take, held=held)
        self._stores[value.name] = store
        if store.spilled:
            self._on_disk += store.nbytes
            self.spilled_bytes += store.nbytes
            self.peak_disk_bytes = max(self.peak_disk_bytes, self._on_disk)
        else:
            self.account(store.nbytes)
        return store

    def _file(self, value: Value, *, reopen: bool) -> MakeFile | None:
        spilled = value.name in self._spilled
        if self._folder is None or not (spilled or self._keep):
            return None
        name = value_file(value.name) if self._keep else f".twoheads-{uuid4().hex}.spill"
        return partial(MappedFile, self._folder / name, window=spilled, keep=self._keep, reopen=reopen)

    def account(self, nbytes: int) -> None:
        """Adds ``nbytes`` (negative: subtracts) held beside the values, e.g. mask tiles."""
        self._live += nbytes
        self.peak_bytes = max(self.peak_bytes, self._live)
        self._spare.trim(max(self.peak_bytes, self._found) - self._live)

    def __getitem__(self, name: str) -> ValueStore:
        return self._stores[name]

    def __contains__(self, name: str) -> bool:
        return name in self._stores

    def release(self, names: Iterable[str]) -> None:
        """Frees the values ``names``, as far as they exist."""
        for name in names:
            store = self._stores.pop(name, None)
            if store is not None and store.spilled:
                self._on_disk -= store.nbytes
            elif store is not None:
                self.account(-store.nbytes)
                if store.memory is not None:
                    self._spare.give(store.memory)
            if store is not None and store.path is not None:
                store.path.unlink(missing_ok=True)

    def hand_over(self, name: str) -> None:
        """Leaves the memory of the value ``name`` to whoever reads it now: no later run gets it."""
        self._stores[name].memory = None

    def close(self) -> None:
        """Leaves memory for the next run; the values that are still there are given up, but for their files."""
        for store in self._stores.values():
            if store.memory is not None:
                self._spare.give(store.memory)
        self._stores.clear()
        self._spare.trim(KEPT_BYTES)

    @property
    def live(self) -> tuple[str, ...]:
        """Names of the values alive."""
        return tuple(self._stores)
