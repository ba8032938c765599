"""One run on workers: the body, then rows of logits or hidden states from them, in order, a few pieces at a time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Pooling
from twoheads.graphs.schedule.head_columns import columns_at_once
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.runtime.cluster.body import BodyRun
from twoheads.runtime.cluster.tasks import Dispatch, Sent
from twoheads.runtime.cluster.transport import PackTask, RunTask, Workers
from twoheads.runtime.execution.executor import RunPlan, Tick
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.report import ClusterReport, Counted, StageReport

__all__ = ["ClusterRun"]

Array = npt.NDArray[Any]

AHEAD = 2
"""Pieces of the result for each worker that are computed, or wait to be taken, at the same time."""


class ClusterRun:
    """A run whose values the workers hold; see :class:`~twoheads.runtime.execution.executor.Running`.

    Args:
        plan: The run.
        workers: The cluster.
        alive: Workers to use; those that are lost are removed from it.
        threads: Blocks that a worker computes at the same time; as many rows are a piece of the result.
        tick: Called now and then.
    """

    restored_calls = 0

    def __init__(self, plan: RunPlan, workers: Workers, alive: set[int], threads: int, tick: Tick | None) -> None:
        self._schedule = schedule = plan.schedule
        self._count = len(alive)
        self._unit = threads * schedule.program.block_size
        rows = schedule.positions or None
        weights = (plan.streamed, plan.ahead, columns_at_once(schedule.program) is not None)
        self._task = RunTask(schedule.lengths, schedule.length, schedule.output, rows, *weights)
        reads = StageReads(schedule)
        self._dispatch = Dispatch(workers, alive, place(schedule, self._count), reads.values, tick or (lambda: None))
        self._body = BodyRun(schedule, self._task, self._dispatch, reads)
        self._head_seconds = 0.0

    @property
    def calls(self) -> int:
        return self._dispatch.calls.total()

    def prepare(self) -> None:
        self._body.open_engines()

    def body(self, inputs: Mapping[str, Array]) -> None:
        self._body.compute(inputs)

    def close(self) -> None:
        """Lets go of every value."""
        self._dispatch.ledger.release(self._dispatch.ledger.values)

    def row_value(self, name: str) -> Array:
        def send() -> tuple[Any, Sent]:
            self._body.hold(name, [0])
            worker = self._dispatch.owner(None, 0)
            references, holders = self._dispatch.references(worker, {name: [0]})
            return self._dispatch.send(worker, holders, "give", references)

        return self._one(send)

    def embedding(self, pooling: Pooling) -> Array:
        """A worker makes it, of all hidden states."""
        program = self._schedule.program
        length = self._schedule.value_rows(program.value(program.hidden))
        return self._one(lambda: self._send(None, range(-(-length // program.block_size))))

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> Array | None:
        began, program = time.perf_counter(), self._schedule.program
        hidden = program.value(program.hidden)
        wanted = np.arange(self._schedule.value_rows(hidden)) if positions is None else positions
        value = program.value(program.logits) if self._schedule.positions and program.logits else hidden
        array = np.empty((len(wanted), value.block_shape(1)[-1]), np.float32) if sink is None else None

        def deliver(piece: int, rows: Array) -> None:
            start = piece * self._unit
            if array is not None:
                array[start : start + len(rows)] = rows
            elif sink is not None:
                sink.write(start, rows)

        self._stream([wanted[at : at + self._unit] for at in range(0, len(wanted), self._unit)], deliver)
        self._head_seconds = time.perf_counter() - began
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

    def counted(self) -> Counted:
        dispatch, schedule = self._dispatch, self._schedule
        _, head = needed_stages(schedule.program, schedule.output)
        times = {**self._body.seconds, **{stage.name: self._head_seconds / len(head) for stage in head}}
        read = dispatch.read_bytes
        return Counted(
            self.calls,
            self._body.rounds + len(head),
            tuple(
                StageReport(plan.name, plan.kind, dispatch.calls[plan.name], times.get(plan.name, 0.0))
                for plan in schedule.stages
            ),
            repeats=dispatch.repeats,
            cluster=ClusterReport(
                workers=self._count,
                lost_workers=dispatch.lost_workers,
                recomputed_calls=self.calls - dispatch.repeats - schedule.engine_calls,
                read_bytes=read.total() - read["copy"],
                copied_bytes=read["copy"],
                worker_peak_bytes=dispatch.peak_bytes,
            ),
        )
