"""Key tiles and their values for the lanes: where they are, or fetched from host memory while others are used."""

from __future__ import annotations

from collections.abc import Sequence

from twoheads.runtime.backends.device_protocol import Device, DeviceArray, Event, Stream
from twoheads.runtime.device.lanes import Lane
from twoheads.runtime.device.layout import align
from twoheads.runtime.device.values import DeviceValue

__all__ = ["KeyTiles"]


class _Turn:
    """One of two buffers: what says that it is filled, and which lanes have used what was in it."""

    def __init__(self, device: Device, address: int, lanes: int) -> None:
        self.address = address
        self.ready: Event = device.new_event()
        self.done: tuple[Event, ...] = tuple(device.new_event() for _ in range(lanes))
        self.users: list[Lane] = []


class KeyTiles:
    """Two buffers that take turns.

    Args:
        device: Where they are.
        stream: For copies into them.
        turns: Their addresses.
        lanes: How many lanes read them.
    """

    def __init__(self, device: Device, stream: Stream, turns: tuple[int, int], lanes: int) -> None:
        self._device = device
        self._stream = stream
        self._turns = [_Turn(device, address, lanes) for address in turns]
        self._at = 0
        self._fetched = False

    def begin(self) -> None:
        """Begins a stage: nobody uses the buffers."""
        for turn in self._turns:
            turn.users = []

    def take(
        self, keys: DeviceValue, values: DeviceValue, tile: int, lanes: Sequence[Lane]
    ) -> tuple[DeviceArray, DeviceArray]:
        """The keys and values of ``tile``, for calls that are now queued on ``lanes``; then :meth:`give`."""
        self._fetched = keys.on_host or values.on_host
        if not self._fetched:
            return keys.tile(tile), values.tile(tile)
        self._at = 1 - self._at
        turn = self._turns[self._at]
        for lane in turn.users:
            self._device.wait(self._stream, turn.done[lane.number])
        arrays: list[DeviceArray] = []
        address = turn.address
        for value in (keys, values):
            if value.on_host:
                array = DeviceArray(address, value.value.dtype, value.tile_shape)
                self._device.copy(array.rows, value.tile_rows(tile), self._stream)
                address += align(array.nbytes)
                arrays.append(array)
            else:
                arrays.append(value.tile(tile))
        self._device.record(turn.ready, self._stream)
        for lane in lanes:
            self._device.wait(lane.compute, turn.ready)
        return arrays[0], arrays[1]

    def give(self, lanes: Sequence[Lane]) -> None:
        """Lets the buffer be filled again when what is queued on ``lanes`` is done."""
        if self._fetched:
            turn = self._turns[self._at]
            turn.users = list(lanes)
            for lane in lanes:
                self._device.record(turn.done[lane.number], lane.compute)
