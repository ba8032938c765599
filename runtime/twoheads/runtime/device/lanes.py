"""Streams that run side by side within a stage and are joined between stages."""

from __future__ import annotations

from collections.abc import Sequence

from twoheads.runtime.backends.device_protocol import Device, DeviceArray, Event, Rows, Stream
from twoheads.runtime.device.layout import align
from twoheads.runtime.device.values import DeviceValue

__all__ = ["Desk", "Lane", "Team", "Turn"]


class Turn:
    """One of the two buffers that a streamed block alternates between, and the events that hand it on.

    Args:
        device: Whose events they are.
        address: Of its device memory.
    """

    def __init__(self, device: Device, address: int) -> None:
        self.address = address
        self.ready: Event = device.new_event()
        """What is read has arrived."""
        self.done: Event = device.new_event()
        """Computing has read and written it."""
        self.free: Event = device.new_event()
        """Nothing needs it any more."""
        self.used = False
        """Whether :attr:`free` stands for something of this stage."""


class Lane:
    """A stream for computing, one for copies to it and one for copies from it.

    Args:
        device: Whose streams they are.
        number: Which of the backend's lanes it is.
        compute: The stream on which the engines of that lane compute.
        copies: A stream for copies to it and one for copies from it.
        staging: Addresses of two buffers of device memory for blocks that are not used in place.
    """

    def __init__(
        self, device: Device, number: int, compute: Stream, copies: tuple[Stream, Stream], staging: tuple[int, int]
    ) -> None:
        self.device = device
        self.number = number
        self.compute = compute
        self.copy_in, self.copy_out = copies
        self.turns = tuple(Turn(device, address) for address in staging)


class Desk:
    """Where a lane reads and writes the blocks of one stage: in place where it can, else through the lane's turns.

    For every call: :meth:`begin`, :meth:`read` and :meth:`write` what it binds, :meth:`loaded`, the call, :meth:`done`.
    Reading the next call's blocks then overlaps with this call and with writing the last one's.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._device = lane.device
        self._at = 0
        self._next = 0
        self._reads = False
        self._writes: list[tuple[Rows, Rows]] = []
        for turn in lane.turns:
            turn.used = False

    @property
    def _turn(self) -> Turn:
        return self._lane.turns[self._at]

    def begin(self) -> None:
        """Turns to the other buffer."""
        self._at = 1 - self._at
        self._next = self._turn.address
        self._reads = False
        self._writes.clear()

    def read(self, value: DeviceValue, block: int) -> DeviceArray:
        """Block ``block`` of ``value``, to be read by the call."""
        if value.in_place:
            return value.block(block)
        staged = self._take(value)
        if not self._reads and self._turn.used:
            self._device.wait(self._lane.copy_in, self._turn.free)
        self._reads = True
        self._device.copy(_like(staged, value.block_rows(block)), value.block_rows(block), self._lane.copy_in)
        return staged

    def write(self, value: DeviceValue, block: int) -> DeviceArray:
        """Block ``block`` of ``value``, to be written by the call."""
        if value.in_place:
            return value.block(block)
        staged = self._take(value)
        rows = value.block_rows(block)
        if not self._writes and self._turn.used:
            self._device.wait(self._lane.compute, self._turn.free)
        self._writes.append((rows, _like(staged, rows)))
        return staged

    def loaded(self) -> None:
        """Lets the call wait for what it reads."""
        if self._reads:
            self._device.record(self._turn.ready, self._lane.copy_in)
            self._device.wait(self._lane.compute, self._turn.ready)

    def done(self) -> None:
        """Writes what the call wrote to where it belongs, and lets the buffer be used again after that."""
        device, lane, turn = self._device, self._lane, self._turn
        last = lane.compute
        if self._writes:
            device.record(turn.done, lane.compute)
            device.wait(lane.copy_out, turn.done)
            for target, source in self._writes:
                device.copy(target, source, lane.copy_out)
            last = lane.copy_out
        if self._writes or self._reads:
            device.record(turn.free, last)
            turn.used = True

    def _take(self, value: DeviceValue) -> DeviceArray:
        staged = DeviceArray(self._next, value.value.dtype, value.block_shape)
        self._next += align(staged.nbytes)
        return staged


def _like(staged: DeviceArray, rows: Rows) -> Rows:
    """All of ``staged`` in as many rows as ``rows`` has, one right behind the other."""
    return Rows(staged.address, rows.width, rows.height, rows.width)


class Team:
    """Streams that begin together after the first one, and that it waits for: a stage's.

    Args:
        device: Whose streams they are.
        streams: The first one is the one that all stages share.
    """

    def __init__(self, device: Device, streams: Sequence[Stream]) -> None:
        self._device = device
        self._streams = tuple(streams)
        self._events: tuple[Event, ...] = tuple(device.new_event() for _ in streams)

    def fork(self) -> None:
        """Lets all streams begin after what is queued on the first."""
        self._device.record(self._events[0], self._streams[0])
        for stream in self._streams[1:]:
            self._device.wait(stream, self._events[0])

    def join(self) -> None:
        """Lets the first stream go on after what is queued on all others."""
        for stream, event in zip(self._streams[1:], self._events[1:], strict=True):
            self._device.record(event, stream)
            self._device.wait(self._streams[0], event)
