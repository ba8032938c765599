"""Runs of several inputs that share their blocks."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.packing import Packing
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.arrays import give_warnings
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.memory.half_range import HalfRangeError
from twoheads.runtime.reports.report import Result
from twoheads.runtime.runs.context import Progress, RunContext
from twoheads.runtime.runs.host_executor import prepare
from twoheads.runtime.runs.packed import compute_packed, head_rows, packed_groups, row_bytes, schedule_group
from twoheads.runtime.runs.report import run_report
from twoheads.runtime.stages.attention.packed import ScoresBeyondCodesError

__all__ = ["run_groups"]

logger = logging.getLogger(__name__)


class _NotFiniteError(Exception):
    """Some result of a packed run is not finite."""


def run_groups(
    bundle: RunContext, engines: EnginePool, requests: list[Request], output: str, progress: Progress | None
) -> dict[int, Result]:
    """The results of those requests that could share a run, by their place in the list.

    Args:
        bundle: What runs.
        engines: Its engines.
        requests: What is to run.
        output: As :meth:`~twoheads.runtime.runs.session.LoadedBundle.run` takes it.
        progress: Likewise.
    """
    done: dict[int, Result] = {}
    lengths = [request.length for request in requests]

    def fits(packing: Packing) -> bool:
        try:
            bundle.spill_plan(schedule_group(bundle.program, packing, output, workers=bundle.threads))
        except InputError:
            return False
        return True

    groups = packed_groups(
        bundle.program,
        engines,
        lengths,
        row_bytes=row_bytes(bundle.program, output),
        fits=(lambda _: True) if bundle.memory_limit is None else fits,
    )
    for members, packing in groups:
        try:
            results = _run_group(bundle, engines, [requests[at] for at in members], packing, output, progress)
        except (ScoresBeyondCodesError, HalfRangeError, _NotFiniteError) as error:
            # A number that is none spoils whoever shares its tiles, hidden or not: nothing times NaN is NaN.
            logger.info("runs %d inputs one by one: %s", len(members), error)
        else:
            done.update(zip(members, results, strict=True))
    return done


def _run_group(
    bundle: RunContext,
    engines: EnginePool,
    requests: list[Request],
    packing: Packing,
    output: str,
    progress: Progress | None,
) -> list[Result]:
    rows = head_rows(requests, output)
    schedule = schedule_group(bundle.program, packing, output, rows=rows, workers=bundle.threads)
    spilled = bundle.spill_plan(schedule).values
    longest = max(request.length for request in requests)
    notes = give_warnings(bundle.manifest, bundle.program, longest, depth=5)
    total = schedule.engine_calls
    with Crew(bundle.threads, None if progress is None else lambda: progress(run.calls, total)) as crew:
        program = bundle.program if packing.coded else schedule.program
        run = RunState(program, schedule, engines, crew, packing, spilled=spilled, folder=bundle.spill)
        prepared = prepare(run)
        began = time.perf_counter()
        arrays = compute_packed(run, requests, output)
        seconds = time.perf_counter() - began
    run.stores.close()
    if run.finite.first is not None:
        raise _NotFiniteError
    report = replace(
        run_report(bundle, run, seconds, prepared, notes),
        requests=len(requests),
        length=packing.tokens,
        lengths={},
        output=output,
    )
    return [Result(array, output, report) for array in arrays]
