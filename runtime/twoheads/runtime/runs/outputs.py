"""Which rows of a run's values its output is made of: for every executor, and for one input as for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.lengths import value_rows
from twoheads.graphs.program.program import Pooling, Program, Value
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.execution.executor import Running
from twoheads.runtime.inputs.requests import Request
from twoheads.runtime.memory.finite_rows import FiniteRows, watched
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.stages.pooling import pool

__all__ = ["SHARED", "Rows", "request_rows", "split_output", "take_output"]

Rows = npt.NDArray[np.int64]

SHARED = {"last": "logits", "embedding": "hidden"}
"""What a run of several inputs computes for all of them, instead of what has one row an input."""


def request_rows(hidden: Value, request: Request, output: str) -> Rows | None:
    """The rows of the request's hidden states ``hidden`` that make its output, in order; ``None`` for all."""
    if output == "last":
        return np.array([value_rows(hidden, request.lengths) - 1])
    return None if output == "embedding" else request.rows


def take_output(
    run: Running, schedule: Schedule, rows: Rows | None, sink: Sink | None, finite: FiniteRows
) -> npt.NDArray[Any] | None:
    """The output of a run whose body is computed; ``None`` where it went to ``sink``.

    Args:
        run: The run.
        schedule: Its schedule.
        rows: The rows of the hidden states that it is made of, ``None`` for all.
        sink: Where rows go, or ``None``.
        finite: Looks at all that is taken.
    """
    program = schedule.program
    if schedule.output == "embedding":
        vector = run.embedding(_pooling(program))
    elif schedule.output == "logits" and program.logits is not None and program.pooled_logits:
        vector = run.row_value(program.logits).reshape(-1).astype(np.float32)
    else:
        taken = run.rows(rows, None if sink is None else watched(sink, finite))
        if taken is not None:
            finite.see(taken)
        return taken
    finite.see(vector[None])
    return vector


def split_output(
    program: Program, taken: npt.NDArray[Any] | None, own: Sequence[Rows] | None, output: str
) -> list[npt.NDArray[Any]]:
    """Every request's own output, from the rows of all of them, of which each has so many as in ``own``."""
    if taken is None or own is None:
        raise InternalError("a shared run has rows of its own for every request, and no sink")
    parts = np.split(taken, np.cumsum([len(rows) for rows in own])[:-1])
    if output == "embedding":
        return [pool(part, _pooling(program)) for part in parts]
    return [part.copy() for part in parts]


def _pooling(program: Program) -> Pooling:
    if program.pooling is None:
        raise InternalError(f"{program.name} has no pooling")
    return program.pooling
