"""The result of a run: rows of logits or hidden states from the workers, in order, a few pieces at a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.cluster.body import BodyRun
from twoheads.runtime.cluster.dispatch import Dispatch, Sent
from twoheads.runtime.cluster.transport import PackTask, RunTask
from twoheads.runtime.memory.sink import Sink

__all__ = ["ResultRows"]

AHEAD = 2
"""Pieces of the result for each worker that are computed, or wait to be taken, at the same time."""


class ResultRows:
    """Takes the result of a run whose body is computed.

    Args:
        schedule: The run.
        task: The same for the workers.
        dispatch: Its calls.
        body: Holds the hidden states, and computes them again if they are lost.
        threads: Blocks that a worker computes at the same time; as many are a piece.
    """

    def __init__(self, schedule: Schedule, task: RunTask, dispatch: Dispatch, body: BodyRun, threads: int) -> None:
        self._schedule = schedule
        self._task = task
        self._dispatch = dispatch
        self._body = body
        self._unit = threads * schedule.program.block_size

    def row_value(self, name: str) -> npt.NDArray[Any]:
        """The row value ``name``."""

        def send() -> tuple[Any, Sent]:
            self._body.hold(name, [0])
            worker = self._dispatch.owner(None, 0)
            references, holders = self._dispatch.references(worker, {name: [0]})
            return self._dispatch.send(worker, holders, "give", references)

        return self._one(send)

    def embedding(self) -> npt.NDArray[Any]:
        """All hidden states as one vector."""
        program = self._schedule.program
        length = self._schedule.value_rows(program.value(program.hidden))
        return self._one(lambda: self._send(None, range(-(-length // program.block_size))))

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> npt.NDArray[Any] | None:
        """Rows of the logits or hidden states.

        Args:
            positions: Those that are wanted, ``None`` for all.
            sink: Where they go, or ``None``.
        """
        program = self._schedule.program
        hidden = program.value(program.hidden)
        wanted = np.arange(self._schedule.value_rows(hidden)) if positions is None else positions
        value = program.value(program.logits) if self._schedule.positions and program.logits else hidden
        array = np.empty((len(wanted), value.block_shape(1)[-1]), np.float32) if sink is None else None

        def deliver(piece: int, rows: npt.NDArray[Any]) -> None:
            start = piece * self._unit
            if array is not None:
                array[start : start + len(rows)] = rows
            elif sink is not None:
                sink.write(start, rows)

        self._stream([wanted[at : at + self._unit] for at in range(0, len(wanted), self._unit)], deliver)
        return array

    def _one(self, send: Callable[[], tuple[Any, Sent]]) -> npt.NDArray[Any]:
        """The array that a call returns, sent again until it is not lost."""
        while True:
            handle, sent = send()
            _, result = self._dispatch.collect({handle: sent})
            if result is not None and result.array is not None:
                return result.array

    def _stream(self, pieces: list[npt.NDArray[np.int64]], deliver: Callable[[int, npt.NDArray[Any]], None]) -> None:
        """Delivers the rows of each piece, in order."""
        waiting, flying, numbers = list(range(len(pieces))), dict[Any, Sent](), dict[int, int]()
        done: dict[int, npt.NDArray[Any]] = {}
        turn = 0
        while turn < len(pieces):
            while waiting and (waiting[0] == turn or len(flying) + len(done) < AHEAD * len(self._dispatch.alive)):
                piece = heapq.heappop(waiting)
                handle, sent = self._send(pieces[piece])
                flying[handle] = sent
                numbers[id(sent)] = piece
            sent, result = self._dispatch.collect(flying)
            piece = numbers.pop(id(sent))
            if result is None or result.array is None:
                heapq.heappush(waiting, piece)
            else:
                done[piece] = result.array
            while turn in done:
                deliver(turn, done.pop(turn))
                turn += 1

    def _send(self, positions: npt.NDArray[np.int64] | None, blocks: Iterable[int] | None = None) -> tuple[Any, Sent]:
        """Asks for the rows ``positions``, of the worker that holds the first of them; ``None``: the embedding."""
        program = self._schedule.program
        hidden = program.value(program.hidden)
        needed = np.unique(positions // program.block_size).tolist() if positions is not None else list(blocks or ())
        self._body.hold(hidden.name, needed)
        first = needed[0] if positions is None else int(positions[0]) // program.block_size
        worker = self._dispatch.owner(hidden.axis, first)
        references, holders = self._dispatch.references(worker, {hidden.name: needed})
        return self._dispatch.send(worker, holders, "pack", PackTask(self._task, positions, references))
