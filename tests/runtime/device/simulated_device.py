"""A device without hardware that keeps CUDA's rules and takes every freedom that they leave.

Its memory is not the host's: addresses lie where no array is, and fresh memory holds what must not be read. Queued work
runs when somebody synchronizes, in an order drawn at random among those that streams and events allow, so that a
missing event shows up as wrong numbers. What CUDA forbids in a capture raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.runtime.backends.device_protocol import DeviceArray, HostBytes, Kernel, Rows
from twoheads.runtime.stages.attention.merge import merge_state

BASE = 1 << 46
PAGE = 1 << 20


class SimulationError(AssertionError):
    """The runtime broke a rule."""


@dataclass(eq=False)
class Node:
    """Queued or recorded work: it runs after ``before``."""

    act: Callable[[], None]
    before: list[Node]
    stream: int
    done: bool = False


@dataclass(eq=False)
class SimulatedEvent:
    node: Node | None = None
    capture: Capture | None = None


@dataclass(eq=False)
class Capture:
    origin: int
    nodes: list[Node] = field(default_factory=list)
    last: dict[int, Node] = field(default_factory=dict)


@dataclass
class SimulatedGraph:
    nodes: list[Node]
    dropped: bool = False


class SimulatedDevice:
    name = "simulated"

    def __init__(self, seed: int = 0, memory: int = 1 << 30) -> None:
        self.random = np.random.default_rng(seed)
        self.memory = memory
        self.held = 0
        self.copied_in = self.copied_out = self.copied_within = self.launches = self.replays = 0
        self._next = BASE
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}
        self._pinned: list[HostBytes] = []
        self._streams = 0
        self._last: dict[int, Node] = {}
        self._pending: list[Node] = []
        self._capture: Capture | None = None

    # ------------------------------------------------------------------------------------------------ memory

    def total_bytes(self) -> int:
        return self.memory

    def allocate(self, nbytes: int) -> int:
        if self.held + nbytes > self.memory:
            raise SimulationError(f"{nbytes} bytes beyond {self.held} of {self.memory}")
        self.held += nbytes
        address = self._next
        self._next += (-(-nbytes // PAGE) + 1) * PAGE
        self._blocks[address] = np.full(nbytes, 0xFF, np.uint8)  # NaN, and -1
        return address

    def free(self, address: int) -> None:
        if any(not node.done for node in self._pending):
            raise SimulationError("memory is freed while work is queued")
        self.held -= len(self._blocks.pop(address))

    def pinned(self, nbytes: int) -> HostBytes:
        array = np.full(nbytes, 0xFF, np.uint8)
        self._pinned.append(array)
        return array

    def bytes_at(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """A view of device memory, for work that runs on the device."""
        for start, block in self._blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return block[address - start : address - start + nbytes]
        raise SimulationError(f"{nbytes} bytes at {address:#x} are not allocated")

    def view(self, array: DeviceArray) -> npt.NDArray[Any]:
        if array.address % 16:
            raise SimulationError(f"{array} is not aligned")
        return self.bytes_at(array.address, array.nbytes).view(array.dtype).reshape(array.shape)

    # ----------------------------------------------------------------------------------------------- streams

    def new_stream(self) -> int:
        self._streams += 1
        return self._streams

    def new_event(self) -> SimulatedEvent:
        return SimulatedEvent()

    def _in_capture(self, stream: int) -> bool:
        return self._capture is not None and (stream == self._capture.origin or stream in self._capture.last)

    def queue(self, stream: int, act: Callable[[], None]) -> Node:
        """Queues work, or records it."""
        if self._in_capture(stream):
            assert self._capture is not None
            last, nodes = self._capture.last, self._capture.nodes
        else:
            if self._capture is not None:
                raise SimulationError("work on a stream that did not join the capture")
            last, nodes = self._last, self._pending
        node = Node(act, [last[stream]] if stream in last else [], stream)
        last[stream] = node
        nodes.append(node)
        return node

    def record(self, event: SimulatedEvent, stream: int) -> None:
        captured = self._in_capture(stream)
        event.node = self.queue(stream, _nothing)
        event.capture = self._capture if captured else None

    def wait(self, stream: int, event: SimulatedEvent) -> None:
        if event.node is None:
            raise SimulationError("a wait for an event that was never recorded")
        if self._capture is not None:
            if event.capture is not self._capture:
                raise SimulationError("a capture waits for an event from outside")
            if not self._in_capture(stream):
                self._capture.last[stream] = event.node
        elif event.capture is not None:
            raise SimulationError("a wait outside of a capture for an event in it")
        self.queue(stream, _nothing).before.append(event.node)

    def synchronize(self) -> None:
        if self._capture is not None:
            raise SimulationError("synchronize in a capture")
        self._run(self._pending)
        self._pending.clear()
        self._last.clear()

    def _run(self, nodes: list[Node]) -> None:
        """Runs all nodes in a random legal order: streams race ahead of each other by whims that change."""
        waiting = {id(node): sum(not before.done for before in node.before) for node in nodes}
        after: dict[int, list[Node]] = {}
        for node in nodes:
            for before in node.before:
                if not before.done:
                    after.setdefault(id(before), []).append(node)
        ready = [node for node in nodes if not waiting[id(node)]]
        whims = self.random.random(self._streams + 1)
        while ready:
            if self.random.random() < 0.05:
                whims = self.random.random(self._streams + 1)
            at = max(range(len(ready)), key=lambda place: whims[ready[place].stream])
            node = ready.pop(at)
            node.act()
            node.done = True
            for follower in after.get(id(node), ()):
                waiting[id(follower)] -= 1
                if not waiting[id(follower)]:
                    ready.append(follower)

    # -------------------------------------------------------------------------------------------------- work

    def copy(self, target: Rows, source: Rows, stream: int) -> None:
        if (target.width, target.height) != (source.width, source.height):
            raise SimulationError(f"a copy of {source} to {target}")
        kinds = [isinstance(rows.place, int) for rows in (target, source)]
        if not any(kinds):
            raise SimulationError("a copy from host to host")
        if self._in_capture(stream):
            for rows in (target, source):
                if not isinstance(rows.place, int) and not self._is_pinned(rows.place):
                    raise SimulationError("a copy of unpinned memory in a capture")

        def act() -> None:
            self._rows(target)[...] = self._rows(source)
            nbytes = target.width * target.height
            if all(kinds):
                self.copied_within += nbytes
            elif kinds[0]:
                self.copied_in += nbytes
            else:
                self.copied_out += nbytes

        self.queue(stream, act)

    def _is_pinned(self, array: HostBytes) -> bool:
        return any(np.shares_memory(array, pinned) for pinned in self._pinned)

    def _rows(self, rows: Rows) -> npt.NDArray[np.uint8]:
        pitch = rows.width if rows.height == 1 else rows.pitch
        span = (rows.height - 1) * pitch + rows.width
        flat = self.bytes_at(rows.place, span) if isinstance(rows.place, int) else rows.place[:span]
        if len(flat) < span or pitch < rows.width:
            raise SimulationError(f"a copy reaches beyond its array: {rows.width} x {rows.height}, pitch {pitch}")
        return np.lib.stride_tricks.as_strided(flat, (rows.height, rows.width), (pitch, 1))

    def zero(self, target: DeviceArray, stream: int) -> None:
        def act() -> None:
            self.view(target)[...] = 0

        self.queue(stream, act)

    def launch(self, kernel: Kernel, blocks: int, arguments: Sequence[int], stream: int) -> None:
        if len(arguments) != len(kernel.parameters):
            raise SimulationError(f"{kernel.name} is launched with {arguments}")
        for kind, argument in zip(kernel.parameters, arguments, strict=True):
            if not 0 <= argument < (1 << 63 if kind == "p" else 1 << 31):
                raise SimulationError(f"{kernel.name} is launched with {arguments}")

        def act() -> None:
            kernels: dict[str, Callable[..., None]] = {"merge_state": self._merge_state, "zero_tail": self._zero_tail}
            kernels[kernel.name](*arguments)
            self.launches += 1

        self.queue(stream, act)

    def _merge_state(self, outs: int, lses: int, out: int, lse: int, count: int, rows: int, width: int) -> None:
        parts = self.view(DeviceArray(outs, "float32", (count, rows, width)))
        weights = self.view(DeviceArray(lses, "float32", (count, rows)))
        merged, total = np.zeros((rows, width), np.float32), np.full(rows, -np.inf, np.float32)
        for part, weight in zip(parts, weights, strict=True):
            merged, total = merge_state(merged, total, part, weight)
        target = self.view(DeviceArray(out, "float32", (rows, width)))
        if np.shares_memory(target, parts):
            raise SimulationError("a merge into what it reads")
        target[...] = merged
        self.view(DeviceArray(lse, "float32", (rows,)))[...] = total

    def _zero_tail(self, tile: int, real: int, outer: int, tokens: int, inner: int) -> None:
        (count,) = self.view(DeviceArray(real, "int32", (1,)))
        self.view(DeviceArray(tile, "uint8", (outer, tokens, inner)))[:, count:] = 0

    # ------------------------------------------------------------------------------------------------ graphs

    def begin_capture(self, stream: int) -> None:
        if self._capture is not None:
            raise SimulationError("a capture within a capture")
        self._capture = Capture(stream)

    def end_capture(self, stream: int) -> SimulatedGraph:
        capture = self._capture
        if capture is None or capture.origin != stream:
            raise SimulationError("no capture began on this stream")
        self._capture = None
        reached: set[int] = set()
        todo = [capture.last[stream]] if stream in capture.last else []
        while todo:
            node = todo.pop()
            if id(node) not in reached:
                reached.add(id(node))
                todo += node.before
        if any(id(node) not in reached for node in capture.last.values()):
            raise SimulationError("a stream of the capture was not joined")
        return SimulatedGraph(capture.nodes)

    def abandon_capture(self, stream: int) -> None:
        self._capture = None

    def replay(self, graph: SimulatedGraph, stream: int) -> None:
        if graph.dropped or self._capture is not None:
            raise SimulationError("a graph that was dropped, or a replay in a capture")
        self.replays += 1
        start = self.queue(stream, _nothing)
        copies: dict[int, Node] = {}
        for node in graph.nodes:
            before = [copies[id(other)] for other in node.before if id(other) in copies]
            copies[id(node)] = Node(node.act, before or [start], node.stream)
        self._pending += copies.values()
        self.queue(stream, _nothing).before.extend(copies.values())

    def drop(self, graph: SimulatedGraph) -> None:
        graph.dropped = True


def _nothing() -> None:
    """An event."""
