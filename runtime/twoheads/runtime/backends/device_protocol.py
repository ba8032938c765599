"""What the runtime asks of a device: memory, copies, streams, events, kernels, and graphs of all of these.

The rules are CUDA's. Work on one stream runs in order, work on two streams in any order that events allow. Nothing has
happened until :meth:`Device.synchronize` returns. While a stream is captured, work on it, and on streams that wait for
an event recorded in the capture, is recorded instead of run; every such stream must be joined again before the end.
A replayed graph reads and writes the addresses that it was recorded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Device", "DeviceArray", "Event", "Graph", "HostBytes", "Kernel", "Rows", "Stream"]

HostBytes = npt.NDArray[np.uint8]
Stream = Any
"""What :meth:`Device.new_stream` gave; of no use to anyone but the device. So are events and graphs."""
Event = Any
Graph = Any


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in device memory. The host can't read it: copy it.

    Attributes:
        address: Of its first byte, in the device's address space.
        dtype: A NumPy dtype name.
        shape: In elements.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def rows(self) -> Rows:
        """All its bytes."""
        return Rows(self.address, self.nbytes)


@dataclass(frozen=True, slots=True)
class Rows:
    """Bytes to copy: ``height`` rows of ``width`` bytes whose beginnings lie ``pitch`` bytes apart.

    Attributes:
        place: A device address, or host memory that begins with the first row.
        width, height, pitch: In bytes and rows; the pitch of a single row does not matter.
    """

    place: int | HostBytes
    width: int
    height: int = 1
    pitch: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of ours.

    Attributes:
        name: Of its entry in the image.
        image: The file of its code beside :mod:`twoheads.runtime.backends.cuda_kernels`.
        threads: Of a block of its grid.
        parameters: One letter each: ``p`` an address, ``i`` a 32-bit integer.
        shared: Bytes of shared memory of a block.
    """

    name: str
    image: str
    threads: int
    parameters: str
    shared: int = 0


class Device(Protocol):
    """One device. All methods but :meth:`synchronize`, :meth:`allocate` and :meth:`pinned` queue work and return."""

    name: str

    def total_bytes(self) -> int:
        """Bytes of memory that the device has."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The address of ``nbytes`` of device memory, contents undefined, aligned to 256 bytes.

        Raises:
            DeviceError: There is not as much.
        """
        ...

    def free(self, address: int) -> None:
        """Gives back what :meth:`allocate` gave; nothing that is queued may use it."""
        ...

    def pinned(self, nbytes: int) -> HostBytes:
        """Host memory that stays where it is, so that copies overlap with computing and graphs may hold them.

        It is given back when no array refers to it any more; nothing that is queued may use it then.
        """
        ...

    def new_stream(self) -> Stream:
        """A stream that waits for no other unless told to."""
        ...

    def new_event(self) -> Event:
        """An event, not yet recorded."""
        ...

    def record(self, event: Event, stream: Stream) -> None:
        """Lets ``event`` stand for all work queued on ``stream`` so far."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Lets later work on ``stream`` begin when what ``event`` stands for now is done."""
        ...

    def synchronize(self) -> None:
        """Returns when all queued work is done.

        Raises:
            DeviceError: Some of it failed.
        """
        ...

    def copy(self, target: Rows, source: Rows, stream: Stream) -> None:
        """Queues a copy between host and device, either way, or within the device.

        Host memory must stay as it is until the copy is done. In a capture it must be pinned.
        """
        ...

    def zero(self, target: DeviceArray, stream: Stream) -> None:
        """Queues that all bytes of ``target`` become 0."""
        ...

    def launch(self, kernel: Kernel, blocks: int, arguments: Sequence[int], stream: Stream) -> None:
        """Queues ``kernel`` over a grid of ``blocks``."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """Begins to record what is queued on ``stream``."""
        ...

    def end_capture(self, stream: Stream) -> Graph:
        """Ends the capture that began on ``stream``.

        Raises:
            DeviceError: The work can't be made a graph; nothing of it has run.
        """
        ...

    def abandon_capture(self, stream: Stream) -> None:
        """Ends the capture that began on ``stream`` after an error; nothing of it has run."""
        ...

    def replay(self, graph: Graph, stream: Stream) -> None:
        """Queues all work of ``graph``."""
        ...

    def drop(self, graph: Graph) -> None:
        """Forgets ``graph``, which must not be running."""
        ...
