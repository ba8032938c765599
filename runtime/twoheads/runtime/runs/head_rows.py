"""The head alone, on hidden states that are given: what tells whether two forms of it give the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.runtime.execution.executor import RunPlan
from twoheads.runtime.runs.host_executor import HostExecutor
from twoheads.runtime.runs.run_context import RunContext

__all__ = ["head_rows"]


def head_rows(
    bundle: RunContext,
    program: Program,
    hidden: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
    lengths: int | Mapping[str, int],
) -> npt.NDArray[np.float32]:
    """The logits of some rows, by the head of ``program``, as a run computes them behind its body.

    Args:
        bundle: Whose engines; on this machine's processor.
        program: The bundle's own, or the one whose head is in pieces of columns.
        hidden: ``[rows, width]``, of all positions.
        positions: int64 ``[p]``: the wanted ones.
        lengths: Of the input that the hidden states belong to.

    Returns:
        ``[p, classes]``.
    """
    if not isinstance(bundle.executor, HostExecutor):
        raise InternalError("the head alone is computed on this machine's processor")
    schedule = make_schedule(program, lengths, output="logits", positions=len(positions), workers=bundle.threads)
    plan = RunPlan(schedule, streamed=bundle.memory_limit is not None)
    with bundle.executor.start(plan, None) as run:
        run.allocate(program.value(program.hidden), reopen=False).fill(hidden[None])
        found = run.rows(positions, None)
    if found is None:
        raise InternalError("a run without a sink gives no array")
    return found
