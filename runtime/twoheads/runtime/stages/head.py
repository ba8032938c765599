"""Run the head on selected rows of the hidden states, block by block, and hand the rows on in order.

A block of logits is large (256 tokens of Gemma: 268 MB), so there is one buffer a worker and no more: a worker that
has finished early waits for its turn to write before it starts another block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import TokenwiseEngine
from twoheads.graphs.serialization.json_codec import FormatError, from_json
from twoheads.runtime.backends.protocol import Call
from twoheads.runtime.execution.run_state import RunState, WorkerCount
from twoheads.runtime.jobs.job import RESULT
from twoheads.runtime.memory.kept_array import KeptArray
from twoheads.runtime.memory.sink import KeptSink, Sink

__all__ = ["run_head"]

TURN_SECONDS = 0.05
"""How often a worker that waits for its turn looks whether the crew was stopped."""


def run_head(run: RunState, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> npt.NDArray[Any] | None:
    """Computes the logits of ``positions`` (``None`` for all).

    Args:
        run: A run whose body has finished.
        positions: Rows of the hidden states, in the order in which rows are wanted.
        sink: Where the rows go; ``None`` to return them.

    Returns:
        ``[rows, classes]`` float32, or ``None`` with a sink.
    """
    began = time.perf_counter()
    head = _Head(run, positions, sink)
    blocks = range(-(-head.rows // run.program.block_size))
    last = head.stages[-1]

    def start() -> Callable[[int], None]:
        return _ColumnsWorker(head, last).block if isinstance(last, ColumnsStage) else _Worker(head).block

    run.work(last, blocks, start, tokens=run.block_tokens, companion=head, alone=last.alone)
    run.rounds += len(head.stages)  # a block goes through all of them, each needs the result of the one before
    elapsed = time.perf_counter() - began
    busy = sum(counter.busy_seconds for counter in head.counters)
    for counter in head.counters:
        counter.seconds += elapsed * counter.busy_seconds / busy if busy else 0.0
    return head.result


@dataclass(frozen=True, slots=True)
class _KeptBlocks:
    """What a checkpoint says: blocks whose rows the sink has, and what the sink says."""

    blocks: int
    rows: Any


class _Head:
    """What the workers share: where rows come from, where they go, whose turn it is.

    In a job the rows go to a file that checkpoints speak of, unless the caller's sink knows of none.
    """

    def __init__(self, run: RunState, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> None:
        needed = {plan.name for plan in run.schedule.stages}
        stages = tuple(stage for stage in run.program.head if stage.name in needed)
        values = {value.name: value for stage in stages for value in stage.outputs}
        if run.program.logits not in values:
            raise InternalError(f"the head of {run.program.name} does not compute {run.program.logits!r}")
        self.run = run
        self.stages = stages
        self.positions = positions
        self.hidden = run.stores[run.program.hidden]
        self.rows = self.hidden.length if positions is None else len(positions)
        self.logits = values[run.program.logits]
        self.counters = [run.counters[stage.name] for stage in stages]
        width = self.logits.block_shape(1)[-1]
        self._kept = KeptArray(run.job.values / RESULT, self.rows, width) if sink is None and run.job else None
        self.sink = self._kept or sink
        self.array = np.empty((self.rows, width), np.float32) if self.sink is None else None
        self._turn = 0
        self._turned = threading.Condition()

    @property
    def result(self) -> npt.NDArray[Any] | None:
        """All rows, unless they went to the caller's sink."""
        return self.array if self._kept is None else self._kept.array

    def save(self) -> dict[str, Any] | None:
        """What a checkpoint says of the rows so far."""
        return {"blocks": self._turn, "rows": self.sink.save()} if isinstance(self.sink, KeptSink) else None

    def restore(self, saved: Any, done: int) -> bool:
        """Goes on behind the rows of an earlier process, if they are still there.

        Raises:
            FormatError: It is of another number of blocks than the stage's own.
        """
        if saved is None or not isinstance(self.sink, KeptSink):
            return self._begin_again()
        kept = from_json(_KeptBlocks, saved, "companion")
        if kept.blocks != done:
            raise FormatError(f"companion: {kept.blocks} blocks are kept, and {done} are done")
        if not self.sink.restore(kept.rows, min(done * self.run.program.block_size, self.rows)):
            return self._begin_again()
        self._turn = done
        return True

    def _begin_again(self) -> bool:
        for counter in self.counters:
            counter.reset()
        return False

    def block_rows(self, block: int, packed: npt.NDArray[Any]) -> tuple[int, int, npt.NDArray[Any]]:
        """The rows ``(start, stop)`` of ``block``, and their hidden states: in place where all rows are wanted.

        Otherwise they are put into ``packed``. What is left behind those of a last, partial block does not matter: the
        head is token-wise.
        """
        size = self.run.program.block_size
        start, stop = block * size, min((block + 1) * size, self.rows)
        if self.positions is None:
            return start, stop, self.hidden.block(block)
        packed[0, : stop - start] = self.hidden.take(self.positions[start:stop])
        return start, stop, packed

    def deliver(self, block: int, start: int, rows: npt.NDArray[Any]) -> None:
        """Writes the rows of ``block`` when all earlier ones are written."""
        if self.sink is None:
            return
        with self._turned:
            while self._turn != block:
                self._turned.wait(TURN_SECONDS)
                self.run.crew.check()
            self.sink.write(start, rows)
            self._turn += 1
            self._turned.notify_all()


class _Worker:
    """One thread's calls and buffers; a block runs through all stages before the next begins."""

    def __init__(self, head: _Head) -> None:
        run = head.run
        self._head = head
        self._wrap = run.backend.tensor
        self._size = run.program.block_size
        self._calls: list[tuple[Call, WorkerCount]] = []
        self._packed = np.zeros(head.hidden.value.block_shape(self._size), head.hidden.value.dtype)
        self._hidden_ports: list[tuple[Call, int]] = []
        self._logits_ports: list[tuple[Call, int]] = []
        self._logits: npt.NDArray[Any] = np.empty(0, np.float32)
        buffers: dict[str, Any] = {}
        for stage in head.stages:
            call = run.engines.tokenwise(stage).new_call()
            self._calls.append((call, run.counters[stage.name].worker()))
            for port, name in enumerate(stage.inputs):
                if name == run.program.hidden:
                    self._hidden_ports.append((call, port))
                else:
                    call.bind_input(port, buffers[name])
            for port, value in enumerate(stage.outputs):
                array = np.empty(value.block_shape(self._size), value.dtype)
                buffers[value.name] = self._wrap(array)
                call.bind_output(port, buffers[value.name])
                if value.name == head.logits.name:
                    self._logits = array
                    self._logits_ports.append((call, port))
        self._in_place = head.array is not None and head.logits.dtype == head.array.dtype.name

    def block(self, block: int) -> None:
        """Computes one block of rows."""
        head = self._head
        start, stop, rows = head.block_rows(block, self._packed)
        hidden = self._wrap(rows)
        for call, port in self._hidden_ports:
            call.bind_input(port, hidden)
        logits = self._logits
        if self._in_place and head.array is not None and stop - start == self._size:
            logits = head.array[start:stop][None]  # whole blocks go straight into the result
        bound = self._wrap(logits)
        for call, port in self._logits_ports:
            call.bind_output(port, bound)
        for call, count in self._calls:
            head.run.crew.check()
            began = time.perf_counter()
            call.run()
            count.calls += 1
            count.seconds += time.perf_counter() - began
        rows = logits[0, : stop - start]
        if head.array is None:
            head.deliver(block, start, rows)
        elif logits is self._logits:
            head.array[start:stop] = rows


class _ColumnsWorker:
    """One thread that fills a block's rows some columns after the other; an engine is open for its columns only."""

    def __init__(self, head: _Head, stage: ColumnsStage) -> None:
        run = head.run
        self._head = head
        self._stage = stage
        self._count = run.counters[stage.name].worker()
        self._packed = np.zeros(head.hidden.value.block_shape(run.program.block_size), head.hidden.value.dtype)
        (port,) = run.engines.declared(TokenwiseEngine, stage.engine).outputs
        self._piece = np.empty(port.shape, port.dtype)
        most = min(head.rows, run.program.block_size) if head.array is None else 0
        self._rows = np.empty((most, stage.classes), port.dtype)

    def block(self, block: int) -> None:
        """Computes one block of rows."""
        head = self._head
        start, stop, hidden = head.block_rows(block, self._packed)
        rows = self._rows[: stop - start] if head.array is None else head.array[start:stop]
        for first in self._stage.starts:
            head.run.crew.check()
            self._columns(first, hidden)
            rows[:, first : first + self._stage.columns] = self._piece[0, : stop - start]
        if head.array is None:
            head.deliver(block, start, rows)

    def _columns(self, first: int, hidden: npt.NDArray[Any]) -> None:
        """The columns from ``first`` on."""
        run, stage = self._head.run, self._stage
        began = time.perf_counter()
        call = run.engines.columns(stage, first).new_call()
        for port in range(len(stage.inputs)):
            call.bind_input(port, run.backend.tensor(hidden))
        call.bind_output(0, run.backend.tensor(self._piece))
        call.run()
        self._count.calls += 1
        self._count.seconds += time.perf_counter() - began
        run.engines.weights.let_go_part(stage.parted, first, stage.columns)
