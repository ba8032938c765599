"""The report of a run that is done."""

from __future__ import annotations

from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.reports.notices import notices
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.reports.report import Counted, Report
from twoheads.runtime.reports.sampling import summarize
from twoheads.runtime.runs.context import RunContext
from twoheads.runtime.runs.groups import Group

__all__ = ["run_report"]


def run_report(
    context: RunContext,
    group: Group,
    schedule: Schedule,
    counted: Counted,
    fault: tuple[str, ...],
    times: tuple[float, float],
    threads: int,
) -> Report:
    """What a run did.

    Args:
        context: What ran; the run's own program may be another form of its program.
        group: The inputs.
        schedule: Of the run.
        counted: While it ran.
        fault: What to tell of its result.
        times: Seconds to open engines, and seconds of the run with open engines.
        threads: Blocks that were computed at the same time.
    """
    samples = any(isinstance(stage, AttentionStage) and stage.average is not None for stage in context.program.body)
    longest = max(request.length for request in group.requests)
    return Report(
        requests=len(group.requests),
        length=schedule.length if group.packing is None else group.packing.tokens,
        lengths=schedule.lengths if group.packing is None else {},
        block_size=context.program.block_size,
        blocks=schedule.blocks,
        output=group.output,
        engine_calls=counted.calls,
        formula_calls=schedule.formula_calls,
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
    )
