"""Carry out runs on workers, whatever they are: each computes rows of every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Pooling, Program
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.cluster.body import BodyRun
from twoheads.runtime.cluster.dispatch import Dispatch
from twoheads.runtime.cluster.results import ResultRows
from twoheads.runtime.cluster.transport import RunTask, Workers
from twoheads.runtime.execution.executor import RunPlan, Tick
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.report import ClusterReport, Counted, StageReport

__all__ = ["ClusterExecutor", "check_program"]

Array = npt.NDArray[Any]


def check_program(program: Program) -> None:
    """Refuses attention whose rows can't be computed apart from each other.

    Raises:
        InputError: A stage samples its keys, or is lowered to stock attention or an oracle.
    """
    for stage in program.body:
        if not isinstance(stage, AttentionStage):
            continue
        engine = program.engine(stage.engine)
        if stage.average is not None or not isinstance(engine, AttentionEngine):
            kind = "sampled attention" if stage.average is not None else type(engine).__name__
            raise InputError(
                f"stage {stage.name}", f"{kind} does not run on a cluster", "compile with --lowering tile, exactly"
            )


class ClusterExecutor:
    """Deals the rows of every stage to workers.

    Args:
        workers: The cluster.
        alive: Workers to use; those that are lost are removed from it.
        threads: Blocks that a worker computes at the same time.
    """

    variants = False

    def __init__(self, workers: Workers, alive: set[int], threads: int) -> None:
        self.threads = threads
        self._workers = workers
        self._alive = alive

    @contextmanager
    def start(self, plan: RunPlan, tick: Tick | None) -> Iterator[ClusterRun]:
        """As :meth:`twoheads.runtime.execution.executor.Executor.start`.

        Raises:
            TwoheadsError: All workers are lost.
        """
        if plan.packing is not None or plan.job is not None or plan.spilled:
            raise InternalError("a cluster runs one input, without files")
        run = ClusterRun(plan.schedule, self._workers, self._alive, self.threads, tick)
        try:
            yield run
        finally:
            run.close()


class ClusterRun:
    """A run whose values the workers hold; see :class:`~twoheads.runtime.execution.executor.Running`."""

    restored_calls = 0

    def __init__(self, schedule: Schedule, workers: Workers, alive: set[int], threads: int, tick: Tick | None) -> None:
        self._schedule = schedule
        self._count = len(alive)
        self._reads = StageReads(schedule)
        self._task = RunTask(schedule.lengths, schedule.length, schedule.output, schedule.positions or None)
        placement = place(schedule, self._count)
        self._dispatch = Dispatch(workers, alive, placement, self._reads.values, tick or (lambda: None))
        self._body = BodyRun(schedule, self._task, self._dispatch, self._reads)
        self._result = ResultRows(schedule, self._task, self._dispatch, self._body, threads)
        self._head_seconds = 0.0

    @property
    def state(self) -> ClusterRun:
        """The run counts itself."""
        return self

    @property
    def calls(self) -> int:
        """Engine calls so far, those among them that were made again."""
        return self._dispatch.calls.total()

    def prepare(self) -> None:
        """Has all workers open the engines that the run needs."""
        self._body.open_engines()

    def body(self, inputs: Mapping[str, Array]) -> None:
        """Has the body computed."""
        self._body.compute(inputs)

    def row_value(self, name: str) -> Array:
        """The row value ``name``."""
        return self._result.row_value(name)

    def embedding(self, pooling: Pooling) -> Array:
        """All hidden states as one vector, which a worker makes of them."""
        return self._result.embedding()

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> Array | None:
        """Rows of the logits or hidden states, in memory or block by block into the sink."""
        began = time.perf_counter()
        rows = self._result.rows(positions, sink)
        self._head_seconds = time.perf_counter() - began
        return rows

    def close(self) -> None:
        """Lets go of every value."""
        self._dispatch.ledger.release(self._dispatch.ledger.values)

    def counted(self) -> Counted:
        """What the run has done."""
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
            cluster=ClusterReport(
                workers=self._count,
                lost_workers=dispatch.lost_workers,
                recomputed_calls=self.calls - schedule.engine_calls,
                read_bytes=read.total() - read["copy"],
                copied_bytes=read["copy"],
                worker_peak_bytes=dispatch.peak_bytes,
            ),
        )
