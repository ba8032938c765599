"""Which stage first gives what is no number: the run once more, every value looked at. Only after such a result.

It is the host that runs once more, whether the first time it was a run in memory, a job or a cluster: values, jobs and
workers of that run are not touched.
"""

from __future__ import annotations

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.program import Stage, Value
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.runtime.execution.executor import RunPlan
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.memory.finite_rows import first_odd_row
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.runs.host_executor import HostExecutor
from twoheads.runtime.runs.run_context import RunContext

__all__ = ["fault_warning"]


def fault_warning(row: int, context: RunContext, request: Request, output: str) -> str:
    """What to tell of a result with NaN or infinities, with the stage and the token where they begin.

    Args:
        row: The first such row of the result.
        context: What ran.
        request: The input.
        output: What was computed.
    """
    rows = "" if context.program.row_value(output) is None else f", from row {row} on"
    told = f"the result is not finite (NaN or infinity){rows}"
    if not isinstance(context.executor, HostExecutor):
        return f"{told}; the same run on the CPU says in which stage that begins"
    try:
        found = _first_fault(context, context.executor, request, output)
    except TwoheadsError as error:
        return f"{told}; it can't be run once more to find the stage in which that begins ({error.problem})"
    if found is not None:
        stage, value, at = found
        return f"{told}: that begins in stage {stage}, in its value {value!r} at token {at}"
    head = ", ".join(stage.name for stage in needed_stages(context.program, output)[1])
    return f"{told}: that begins in the head ({head or 'pooling'}), as all hidden states are finite"


def _first_fault(
    context: RunContext, executor: HostExecutor, request: Request, output: str
) -> tuple[str, str, int] | None:
    """The first stage of the body with such a value, the value, and the first token; ``None`` if all are finite."""
    schedule = context.schedule(request.lengths, output, by_blocks=True)
    kept = context.spill_plan(schedule)
    with executor.start(RunPlan(schedule, None, kept.values, None, kept.streamed, kept.ahead), None) as run:
        run.prepare()
        for stage in run.stages(request.arrays):
            if (found := _odd_value(run, stage)) is not None:
                return stage.name, found[0].name, found[1]
    return None


def _odd_value(run: RunState, stage: Stage) -> tuple[Value, int] | None:
    """The value of ``stage`` that is not finite, at the first token at which one is."""
    odd: list[tuple[int, str, Value]] = []
    for value in stage.outputs:
        if value.name in run.stores and value.dtype.startswith(("float", "bfloat")):
            at = _odd_token(run.stores[value.name])
            if at is not None:
                odd.append((at, value.name, value))
    return None if not odd else (min(odd)[2], min(odd)[0])


def _odd_token(store: ValueStore) -> int | None:
    """The first token at which the value is not finite, block by block: of one in a file, pages are let go behind."""
    if store.value.axis is None:
        return None if first_odd_row(store.whole()) is None else 0
    for start in range(0, store.length, store.block_size):
        for part, at in store.parts(start, min(start + store.block_size, store.length)):
            odd = first_odd_row(part, store.value.token_axis)
            if odd is not None:
                return start + at + odd
    return None
