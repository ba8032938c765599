"""Values between host and device: inputs and masks in, wanted rows out, whole values for the host's own stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.runtime.backends.device_protocol import Device, Rows, Stream
from twoheads.runtime.device.values import DeviceValue
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["Transfers", "neighbours"]

Array = npt.NDArray[Any]


class Transfers:
    """Copies of one run on one stream.

    Args:
        device: Where the values are.
        stream: For all copies.
        block_size: Tokens of a block.
    """

    def __init__(self, device: Device, stream: Stream, block_size: int) -> None:
        self.device = device
        self.stream = stream
        self._block_size = block_size
        self._held: list[Array] = []

    def upload(self, target: Rows, source: Array) -> None:
        """Queues a copy of the contiguous ``source``, which must not change before :meth:`finish`."""
        self._held.append(source)
        self.device.copy(target, Rows(source.reshape(-1).view(np.uint8), source.nbytes), self.stream)

    def download(self, target: Array, source: Rows) -> None:
        """Queues a copy to the contiguous ``target``, which holds it after :meth:`finish`."""
        self._held.append(target)
        self.device.copy(Rows(target.reshape(-1).view(np.uint8), target.nbytes), source, self.stream)

    def finish(self) -> None:
        """Returns when everything queued so far is done."""
        self.device.synchronize()
        self._held.clear()

    def store(self, value: DeviceValue, length: int) -> ValueStore:
        """A store of the host laid out as ``value``, contents undefined."""
        tile = max(value.tile_tokens, self._block_size)
        return ValueStore(value.value, length=length, block_size=self._block_size, tile=tile)

    def read(self, value: DeviceValue, length: int) -> ValueStore:
        """A copy of ``value`` on the host."""
        store = self.store(value, length)
        if value.on_host:
            self.finish()
            np.copyto(store.array.reshape(-1).view(np.uint8), value.host_bytes)
        else:
            self.download(store.array, value.all_rows())
            self.finish()
        return store

    def write(self, value: DeviceValue, store: ValueStore) -> None:
        """Makes ``value`` what ``store`` holds, which must not change before :meth:`finish`."""
        if value.on_host:
            self.finish()
            np.copyto(value.host_bytes, store.array.reshape(-1).view(np.uint8))
        else:
            self.upload(value.all_rows(), store.array)

    def rows(self, value: DeviceValue, rows: Sequence[int] | npt.NDArray[np.int64]) -> Array:
        """Rows of a block-major value ``[1, n, width]`` as ``[rows, width]``; neighbours are copied together."""
        result = np.empty((len(rows), value.block_shape[-1]), value.value.dtype)
        at = 0
        for start, stop in neighbours(rows):
            part = result[at : at + stop - start]
            if value.on_host:
                self.finish()
                place = value.token_rows(start, stop).place
                assert not isinstance(place, int)
                np.copyto(part.reshape(-1).view(np.uint8), place[: part.nbytes])
            else:
                self.download(part, value.token_rows(start, stop))
            at += stop - start
        self.finish()
        return result


def neighbours(rows: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The rows, in order, as runs ``[start, stop)`` of successive ones."""
    if isinstance(rows, range) and rows.step == 1:
        if rows:
            yield rows.start, rows.stop
        return
    start = stop = -1
    for row in map(int, rows):
        if row != stop:
            if stop > start:
                yield start, stop
            start = row
        stop = row + 1
    if stop > start:
        yield start, stop
