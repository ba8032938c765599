"""Run schedules: body stages in order, each stage's blocks in parallel, every value freed after its last reader."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Pooling, Stage
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.execution.checkpoints import Checkpoints
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.executor import RunPlan, Tick
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.execution.weight_stream import WeightStream
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.stages.dispatch import RUNNERS
from twoheads.runtime.stages.head import run_head
from twoheads.runtime.stages.pooling import pool

__all__ = ["HostExecutor", "HostRun", "run_stage"]

Array = npt.NDArray[Any]


class HostExecutor:
    """Runs schedules on engines that read and write this process's memory.

    Args:
        engines: The bundle's engines.
        whole: Engines of the program whose calls compute a whole block, by all threads; ``None`` where there is none.
        threads: Workers of a run.
        folder: Where files of values go, or ``None``.
    """

    variants = True
    files = True

    def __init__(self, engines: EnginePool, whole: EnginePool | None, *, threads: int, folder: Path | None) -> None:
        self.threads = threads
        self._engines = engines
        self._whole = whole
        self._folder = folder

    def held_bytes(self, schedule: Schedule) -> None:
        """As :meth:`twoheads.runtime.execution.executor.Executor.held_bytes`."""

    @contextmanager
    def start(self, plan: RunPlan, tick: Tick | None) -> Generator[HostRun]:
        """As :meth:`twoheads.runtime.execution.executor.Executor.start`."""
        whole = self._whole if self._whole is not None and plan.schedule.program is self._whole.program else None
        # The kernels of a whole block use the threads themselves.
        with Crew(self.threads if whole is None else 1, tick) as crew:
            run = HostRun(
                plan.schedule,
                whole or self._engines,
                crew,
                plan.packing,
                spilled=plan.spilled,
                folder=self._folder,
                job=plan.job,
                rows=plan.rows,
            )
            if plan.streamed:
                run.stream = WeightStream(run.engines, ahead=plan.ahead)
                run.lets_go = True
            if plan.job is not None:
                Checkpoints(plan.job, run)
            try:
                yield run
            finally:
                if run.stream is not None:
                    run.stream.end()
        run.stores.close()


class HostRun(RunState):
    """A run whose values are in this process's stores; see :class:`~twoheads.runtime.execution.executor.Running`."""

    stream: WeightStream | None = None
    """Opens engines that hold weights for their stage only; without it all stay open."""

    def prepare(self) -> None:
        def open_engine(stage: Stage) -> None:
            RUNNERS.of(stage).open(self, stage)

        body, head = needed_stages(self.program, self.schedule.output)
        stages = [*body, *head]
        if self.stream is not None:
            stages = self.stream.begin(body, head)
        self.crew.run(stages, lambda: open_engine)

    def body(self, inputs: Mapping[str, Array]) -> None:
        for _ in self.stages(inputs):
            pass

    def stages(self, inputs: Mapping[str, Array]) -> Iterator[Stage]:
        """Runs the body, or what a checkpoint leaves of it; gives each stage before the next one begins."""
        done = frozenset[str]() if self.checkpoints is None else self.checkpoints.restore()
        gone = {name for stage in done for name in self.schedule.release_after.get(stage, ())}
        for entry in self.program.inputs:
            if entry.value.name not in gone:
                self.stores.allocate(entry.value).fill(inputs[entry.value.name])
        for stage in needed_stages(self.program, self.schedule.output)[0]:
            if stage.name not in done:
                if self.stream is not None:
                    self.stream.enter((stage,))
                run_stage(self, stage)
                yield stage

    def row_value(self, name: str) -> Array:
        return self.stores[name].whole()

    def embedding(self, pooling: Pooling) -> Array:
        store = self.stores[self.program.hidden]
        return pool(store.rows()[: store.length], pooling)

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> Array | None:
        if self.schedule.positions:
            if self.stream is not None:
                self.stream.enter(needed_stages(self.program, self.schedule.output)[1])
                self.engines.memory.trim(0)  # no value comes any more: the plan counts those that are left
            return run_head(self, positions, sink)
        store = self.stores[self.program.hidden]
        count, size = store.length if positions is None else len(positions), store.block_size
        if sink is None:
            if positions is not None:
                return store.take(positions).astype(np.float32)
            if store.memory is None or store.array.dtype != np.float32:
                return store.rows()[:count].astype(np.float32)
            self.stores.hand_over(store.value.name)  # who gets the rows gets their memory: a copy would take as much
            return store.rows()[:count]
        for at in range(0, count, size):
            block = store.block(at // size)[0] if positions is None else store.take(positions[at : at + size])
            sink.write(at, block[: count - at].astype(np.float32, copy=False))
        return None


def run_stage(run: RunState, stage: Stage) -> None:
    """Computes ``stage``, or the run's blocks of it, from its inputs' stores; frees what no later stage reads."""
    began = time.perf_counter()
    partly = run.checkpoints is not None and run.checkpoints.is_partly_done(stage)
    stores = [run.allocate(value, reopen=partly) for value in stage.outputs]
    runner = RUNNERS.of(stage)
    runner.run(run, stage)
    # Each call of a chain needs the one before it; calls of other stages need none of their own.
    run.rounds += run.counters[stage.name].calls if stage.chained else not stage.on_host
    for store in stores:
        store.zero_padding()
        for block, used in enumerate(run.packing.used if run.packing is not None else ()):
            store.zero_rows(block, used)
    runner.finish(run, stage, stores)
    run.counters[stage.name].seconds += time.perf_counter() - began
    released = run.schedule.release_after.get(stage.name, ())
    if run.checkpoints is not None:
        run.checkpoints.finish(stage, released)
    run.stores.release(released)
