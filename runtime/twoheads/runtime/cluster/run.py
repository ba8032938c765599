"""One run on workers, whatever they are: body, result, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.cluster.body import BodyRun
from twoheads.runtime.cluster.dispatch import Dispatch
from twoheads.runtime.cluster.results import ResultRows
from twoheads.runtime.cluster.transport import RunTask, Workers
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.reports.report import ClusterReport, Report, StageReport

__all__ = ["check_program", "run_on_workers"]


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


def run_on_workers(
    schedule: Schedule,
    request: Request,
    workers: Workers,
    alive: set[int],
    *,
    threads: int,
    sink: Sink | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[npt.NDArray[Any] | None, Report]:
    """Computes one request.

    Args:
        schedule: Its schedule.
        request: The input.
        workers: The cluster.
        alive: Workers to use; those that are lost are removed from it.
        threads: Blocks that a worker computes at the same time.
        sink: Where rows go, or ``None``.
        progress: Called with engine calls done and all of them.

    Returns:
        The array (``None`` with a sink), and a report without warnings and approximations.

    Raises:
        TwoheadsError: All workers are lost.
    """
    total, count = schedule.engine_calls, len(alive)

    def tell() -> None:
        if progress is not None:
            progress(min(dispatch.calls.total(), total), total)

    reads = StageReads(schedule)
    task = RunTask(dict(request.lengths), schedule.length, schedule.output, schedule.positions or None)
    dispatch = Dispatch(workers, alive, place(schedule, count), reads.values, tell)
    body = BodyRun(schedule, task, dispatch, reads, request.arrays)
    result = ResultRows(schedule, task, dispatch, body, threads * schedule.program.block_size)
    began = time.perf_counter()
    try:
        body.open_engines()
        opened = time.perf_counter()
        body.compute()
        head_began = time.perf_counter()
        array = result.take(request.rows, sink)
    finally:
        dispatch.ledger.release(dispatch.ledger.values)
    ended = time.perf_counter()
    _, head = needed_stages(schedule.program, schedule.output)
    times = {**body.seconds, **dict.fromkeys((stage.name for stage in head), (ended - head_began) / max(1, len(head)))}
    report = Report(
        requests=1,
        length=schedule.length,
        lengths=schedule.lengths,
        block_size=schedule.program.block_size,
        blocks=schedule.blocks,
        output=schedule.output,
        engine_calls=dispatch.calls.total(),
        formula_calls=schedule.formula_calls,
        rounds=body.rounds + len(head),
        seconds=ended - opened,
        prepare_seconds=opened - began,
        peak_bytes=peak_memory(),
        store_bytes=0,
        threads=threads,
        stages=tuple(
            StageReport(plan.name, plan.kind, dispatch.calls[plan.name], times.get(plan.name, 0.0))
            for plan in schedule.stages
        ),
        approximations=(),
        warnings=(),
        cluster=_cluster_report(dispatch, count, total),
    )
    return array, report


def _cluster_report(dispatch: Dispatch, workers: int, total: int) -> ClusterReport:
    read = dispatch.read_bytes
    return ClusterReport(
        workers=workers,
        lost_workers=dispatch.lost_workers,
        recomputed_calls=dispatch.calls.total() - total,
        read_bytes=read.total() - read["copy"],
        copied_bytes=read["copy"],
        worker_peak_bytes=dispatch.peak_bytes,
    )
