"""One run, whoever carries it out: its schedule, its engines, its body, its output and its report."""

from __future__ import annotations

import logging
import time

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.execution.executor import Executor, Running, RunPlan
from twoheads.runtime.inputs.requests import Inputs
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.finite_rows import FiniteRows
from twoheads.runtime.memory.half_range import HalfRangeError
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.notices import notices
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.reports.report import Counted, Report, Result
from twoheads.runtime.reports.sampling import summarize
from twoheads.runtime.runs.first_fault import fault_warning
from twoheads.runtime.runs.groups import Group, shared_groups
from twoheads.runtime.runs.outputs import split_output, take_output
from twoheads.runtime.runs.run_context import Progress, RunContext
from twoheads.runtime.stages.attention.packed import ScoresBeyondCodesError

__all__ = ["execute", "run_inputs", "shares"]

logger = logging.getLogger(__name__)


class _NotFiniteError(Exception):
    """Some result of a shared run is not finite."""


def shares(pack: str) -> bool:
    """Whether inputs may share a run: ``auto``, or ``off``.

    Raises:
        InputError: It is neither.
    """
    if pack not in ("auto", "off"):
        raise InputError("pack", f"is {pack!r}", "give 'auto' or 'off'")
    return pack == "auto"


def run_inputs(
    context: RunContext,
    executor: Executor,
    inputs: Inputs,
    *,
    share: bool = True,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """The results of all requests of ``inputs``, in order.

    Args:
        context: What runs.
        executor: Carries it out.
        inputs: What is run.
        share: Whether several requests may share a run, where the executor can.
        sink: Takes the rows of a single one.
        progress: Told of every run by itself.
    """
    requests = inputs.requests
    done: dict[int, Result] = {}
    if share and executor.variants and len(requests) > 1:
        for members, group in shared_groups(context, requests, inputs.output):
            try:
                results = execute(context, executor, group, progress=progress)
            except (ScoresBeyondCodesError, HalfRangeError, _NotFiniteError) as error:
                # A number that is none spoils whoever shares its tiles, hidden or not: nothing times NaN is NaN.
                logger.info("runs %d inputs one by one: %s", len(members), error)
            else:
                done.update(zip(members, results, strict=True))
    for at, request in enumerate(requests):
        if at not in done:
            (done[at],) = execute(context, executor, Group((request,), inputs.output), sink=sink, progress=progress)
    return [done[at] for at in range(len(requests))]


def execute(
    context: RunContext,
    executor: Executor,
    group: Group,
    *,
    sink: Sink | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
) -> list[Result]:
    """One run; a result for each of the group's requests, with one report.

    Args:
        context: What runs.
        executor: Carries it out.
        group: The inputs.
        sink: Takes the rows of a single one.
        progress: Called with engine calls done and all of them.
        job: Keeps checkpoints of a single one.

    Raises:
        InputError: The model can't take that length, or there is not enough memory.
        ScoresBeyondCodesError: Codes can't keep the requests apart; they must run one by one.
    """
    own = group.request_rows(context.program)
    count = None if own is None else sum(map(len, own))
    schedule = group.schedule(context, count, by_blocks=job is not None or not executor.variants)
    kept = context.spill_plan(schedule, job, executor.held_bytes(schedule))
    rows = None if own is None else np.concatenate(own)
    plan = RunPlan(schedule, group.packing, kept.values, job, kept.streamed, kept.ahead, rows)
    watch, finite = _Watch(schedule.engine_calls, progress, job), FiniteRows(schedule.program.values())
    with executor.start(plan, None if progress is None and job is None else watch.tick) as run:
        watch.begin(run)
        run.prepare()
        prepared = watch.begin(run)
        try:
            run.body(group.inputs(schedule.program))
            taken = take_output(run, schedule, rows, sink, finite)
        finally:
            watch.tell(now=True)
        seconds = watch.seconds
        watch.tick()
    alone = group.packing is None
    fault: tuple[str, ...] = ()
    if finite.first is not None:
        if not alone:
            raise _NotFiniteError
        fault = (fault_warning(finite.first, context, group.requests[0], group.output),)
    done, times = run.counted(), (prepared, seconds)
    report = _report(context, group, schedule, done, times, fault, executor.threads)
    arrays = [taken] if alone else split_output(schedule.program, taken, own, group.output)
    return [Result(array, group.output, report) for array in arrays]


def _report(
    context: RunContext,
    group: Group,
    schedule: Schedule,
    counted: Counted,
    times: tuple[float, float],
    fault: tuple[str, ...],
    threads: int,
) -> Report:
    """What a run did; its program may be another form of the bundle's."""
    samples = any(stage.average is not None for stage in context.program.attentions)
    longest = max(request.length for request in group.requests)
    return Report(
        requests=len(group.requests),
        length=schedule.length if group.packing is None else group.packing.tokens,
        lengths=schedule.lengths if group.packing is None else {},
        block_size=context.program.block_size,
        blocks=schedule.blocks,
        output=group.output,
        engine_calls=counted.calls,
        formula_calls=schedule.formula_calls - counted.fewer,
        rounds=counted.rounds,
        seconds=times[1],
        prepare_seconds=times[0],
        peak_bytes=peak_memory(),
        store_bytes=counted.store_bytes,
        threads=threads,
        stages=counted.stages,
        approximations=context.manifest.approximations,
        warnings=notices(context.manifest, context.program, longest) + fault,
        repeated_calls=counted.repeats,
        spilled_bytes=counted.spilled_bytes,
        average=summarize(counted.estimates) if samples else None,
        cluster=counted.cluster,
        precision=context.manifest.precision,
        expert_bytes=counted.expert_bytes,
        all_expert_bytes=counted.all_expert_bytes,
    )


class _Watch:
    """The clock of a run, which tells the caller and the job how far it is."""

    def __init__(self, total: int, progress: Progress | None, job: Job | None) -> None:
        self._total = total
        self._progress = progress
        self._job = job
        self._began = time.perf_counter()
        self._run: Running | None = None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    def begin(self, run: Running) -> float:
        """Begins anew; returns the seconds since it began before."""
        self._run, seconds = run, self.seconds
        self._began = time.perf_counter()
        return seconds

    def tick(self) -> None:
        """Tells the caller, and the job now and then."""
        if self._progress is not None and self._run is not None:
            self._progress(min(self._run.calls, self._total), self._total)
        self.tell(now=False)

    def tell(self, *, now: bool) -> None:
        """Tells the job."""
        if self._job is not None and self._run is not None:
            restored = self._run.restored_calls
            self._job.tell(self._run.calls, self._total, began=restored, seconds=self.seconds, now=now)
