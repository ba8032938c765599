"""Which stage first gives what is no number: the run once more, every value looked at. Only after such a result."""

from __future__ import annotations

import warnings

from twoheads.graphs.program.program import Stage, Value, outputs_of
from twoheads.graphs.schedule.schedule import make_schedule, needed_stages
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.memory.finite_rows import first_odd_row
from twoheads.runtime.runs.context import RunContext
from twoheads.runtime.runs.host_executor import prepare, run_stage

__all__ = ["fault_warning", "warn_of_fault"]


def warn_of_fault(note: str, *, depth: int) -> tuple[str, ...]:
    """Warns of a result that is not finite, and returns what was said; ``depth`` frames below the user's call."""
    warnings.warn(note, stacklevel=depth)
    return (note,)


def fault_warning(row: int, bundle: RunContext, engines: EnginePool | None, request: Request, output: str) -> str:
    """What to tell of a result with NaN or infinities, with the stage and the token where they begin.

    Args:
        row: The first such row of the result.
        bundle: What ran.
        engines: What to run once more with, on the host; ``None`` where that can't be done.
        request: The input.
        output: What was computed.
    """
    vector = output == "embedding" or (output == "logits" and bundle.program.pooled_logits)
    rows = "" if vector or output == "last" else f", from row {row} on"
    told = f"the result is not finite (NaN or infinity){rows}"
    if engines is None:
        return f"{told}; a run in memory without a job, device or cluster says in which stage that begins"
    found = _first_fault(bundle, engines, request, output)
    if found is not None:
        stage, value, at = found
        return f"{told}: that begins in stage {stage}, in its value {value!r} at token {at}"
    head = ", ".join(stage.name for stage in needed_stages(bundle.program, output)[1])
    return f"{told}: that begins in the head ({head or 'pooling'}), as all hidden states are finite"


def _first_fault(bundle: RunContext, engines: EnginePool, request: Request, output: str) -> tuple[str, str, int] | None:
    """The first stage of the body with such a value, the value, and the first token; ``None`` if all are finite."""
    schedule = make_schedule(bundle.program, request.lengths, output=output, workers=bundle.threads)
    spilled = bundle.spill_plan(schedule).values
    with Crew(bundle.threads, None) as crew:
        run = RunState(bundle.program, schedule, engines, crew, spilled=spilled, folder=bundle.spill)
        prepare(run)
        try:
            for entry in run.program.inputs:
                run.stores.allocate(entry.value).fill(request.arrays[entry.value.name])
            needed = {plan.name for plan in schedule.stages}
            for stage in run.program.body:
                if stage.name not in needed:
                    continue
                run_stage(run, stage)
                if (found := _odd_value(run, stage)) is not None:
                    return stage.name, found[0].name, found[1]
        finally:
            run.stores.close()
    return None


def _odd_value(run: RunState, stage: Stage) -> tuple[Value, int] | None:
    """The value of ``stage`` that is not finite, at the first token at which one is."""
    odd: list[tuple[int, str, Value]] = []
    for value in outputs_of(stage):
        if value.name in run.stores and value.dtype.startswith(("float", "bfloat")):
            axis = value.token_axis if value.axis is not None else 0
            at = first_odd_row(run.stores[value.name].whole(), axis)
            if at is not None:
                odd.append((at if value.axis is not None else 0, value.name, value))
    return None if not odd else (min(odd)[2], min(odd)[0])
