"""The report of a run that is done."""

from __future__ import annotations

from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.arrays import samples_attention
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.reports.report import Report
from twoheads.runtime.reports.sampling import summarize
from twoheads.runtime.runs.context import RunContext

__all__ = ["run_report"]


def run_report(bundle: RunContext, run: RunState, seconds: float, prepared: float, notes: tuple[str, ...]) -> Report:
    """What ``run`` did.

    Args:
        bundle: What ran; the run's own program may be another form of the bundle's.
        run: Done; its counters hold the calls that were made.
        seconds: It took, engines open.
        prepared: Seconds to open them.
        notes: The warnings that were given.
    """
    schedule = run.schedule
    return Report(
        requests=1,
        length=schedule.length,
        lengths=schedule.lengths,
        block_size=bundle.program.block_size,
        blocks=schedule.blocks,
        output=schedule.output,
        engine_calls=run.calls,
        formula_calls=schedule.formula_calls,
        rounds=run.rounds,
        seconds=seconds,
        prepare_seconds=prepared,
        peak_bytes=peak_memory(),
        store_bytes=run.stores.peak_bytes,
        threads=bundle.threads,
        stages=tuple(counter.report() for counter in run.counters.values()),
        approximations=bundle.manifest.approximations,
        warnings=notes,
        repeated_calls=run.repeats,
        spilled_bytes=run.stores.spilled_bytes,
        average=summarize(run.estimates) if samples_attention(bundle.program) else None,
        precision=bundle.manifest.precision,
    )
