"""Carry out runs on workers, whatever they are: each computes rows of every stage."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.prediction.worker_holdings import worker_holdings
from twoheads.graphs.program.program import AttentionEngine, Program
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.cluster.run import ClusterRun
from twoheads.runtime.cluster.transport import Workers
from twoheads.runtime.execution.executor import RunPlan, Tick

__all__ = ["ClusterExecutor", "check_clustered", "most_held"]


def check_clustered(program: Program) -> None:
    """Refuses stages whose rows can't be computed apart from each other.

    Raises:
        InputError: A stage gathers tokens by expert, samples its keys, or is lowered to stock attention or an oracle.
    """
    for mixture in program.mixtures:
        problem = "gathers the tokens of all blocks by expert, which are no work for several machines"
        raise InputError(f"stage {mixture.name}", problem, "run it on one machine, or compile with --experts dense")
    for stage in program.attentions:
        engine = program.engine(stage.engine)
        if stage.average is not None or not isinstance(engine, AttentionEngine):
            kind = "sampled attention" if stage.average is not None else type(engine).__name__
            raise InputError(
                f"stage {stage.name}", f"{kind} does not run on a cluster", "compile with --lowering tile, exactly"
            )


def most_held(schedule: Schedule, workers: int) -> int:
    """Bytes of values that one of as many workers holds at most, copies for others' loss among them."""
    return int(worker_holdings(place(schedule, workers)).peak.max())


class ClusterExecutor:
    """Deals the rows of every stage to workers.

    Args:
        workers: The cluster.
        alive: Workers to use; those that are lost are removed from it.
        threads: Blocks that a worker computes at the same time.
    """

    variants = False
    files = False

    def __init__(self, workers: Workers, alive: set[int], threads: int) -> None:
        self.threads = threads
        self._workers = workers
        self._alive = alive

    def held_bytes(self, schedule: Schedule) -> int:
        """As :meth:`twoheads.runtime.execution.executor.Executor.held_bytes`; copies that workers keep are counted."""
        return most_held(schedule, len(self._alive))

    @contextmanager
    def start(self, plan: RunPlan, tick: Tick | None) -> Generator[ClusterRun]:
        """As :meth:`twoheads.runtime.execution.executor.Executor.start`.

        Raises:
            TwoheadsError: All workers are lost.
        """
        if plan.packing is not None or plan.job is not None or plan.spilled:
            raise InternalError("a cluster runs one input, without files")
        run = ClusterRun(plan, self._workers, self._alive, self.threads, tick)
        try:
            yield run
        finally:
            run.close()
