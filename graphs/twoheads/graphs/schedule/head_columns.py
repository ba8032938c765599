"""The head in pieces of columns: for runs that have no memory for its weights as a whole.

A head multiplies each row with a weight of one row a class: 545 MB of float32 for 151,936 classes and a width of 896.
Under a limit it may be the only stage that does not fit. Each column of scores depends on its own row of the weight
alone, so an engine of some columns gives the same bits, given their rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import Port, Program, TokenwiseEngine
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.schedule.spill import plan_spill

__all__ = ["COLUMNS", "columns_at_once", "head_columns", "limited_schedule"]

COLUMNS = 4096
"""Of a piece: 67 MB of float32 weights at a width of 4,096. Fewer would be more calls, which open engines anew."""

TILE = 16
"""Columns that kernels of few bits compute together: the rest of a number of classes that is no multiple comes out with
other bits in another place."""

FEWEST_PIECES = 4
"""Heads of fewer classes than so many pieces are small beside the layers."""


def head_columns(program: Program) -> Program | None:
    """``program`` with its head in pieces of :data:`COLUMNS` columns; ``None`` where the head is no such stage.

    Whether its columns are independent can't be told from the declarations: a compiler tries it, and writes no engine
    of columns where they are not.
    """
    return _head_columns(program, COLUMNS)


@lru_cache(maxsize=16)
def _head_columns(program: Program, columns: int) -> Program | None:
    if len(program.head) != 1 or program.pooled_logits:
        return None
    (stage,) = program.head
    engine = program.engine_of(TokenwiseEngine, stage.engine)
    classes = engine.outputs[0].shape[-1]
    if [value.name for value in stage.outputs] != [program.logits] or classes < FEWEST_PIECES * columns:
        return None
    parted = [port for port in engine.weights if port.shape[:1] == (classes,)]
    whole = [port for port in (*engine.inputs, *engine.weights) if port not in parted]
    few_bits = any(not port.dtype.startswith("float") for port in engine.weights)
    if not parted or any(classes in port.shape for port in whole) or (few_bits and classes % TILE):
        return None

    def of_columns(port: Port) -> Port:
        return replace(port, shape=(columns, *port.shape[1:])) if port in parted else port

    (scores,) = engine.outputs
    piece = replace(
        engine,
        name=f"{engine.name}_columns",
        outputs=(replace(scores, shape=(*scores.shape[:-1], columns)),),
        weights=tuple(map(of_columns, engine.weights)),
        flops=engine.flops * columns // classes,
    )
    names = tuple(name for name, port in zip(stage.weights, engine.weights, strict=True) if port in parted)
    calls = ColumnsStage(
        stage.name, piece.name, stage.inputs, stage.outputs, stage.weights, engine.name, names, columns, classes
    )
    used = {other.engine for other in program.body}
    engines = (*(other for other in program.engines if other.name != engine.name or other.name in used), piece)
    return replace(program, engines=engines, head=(calls,))


def columns_at_once(program: Program) -> int | None:
    """How many columns of its head ``program`` computes in a call; ``None`` for all."""
    return next((stage.columns for stage in program.head if isinstance(stage, ColumnsStage)), None)


def limited_schedule(
    program: Program,
    columns: Program | None,
    make: Callable[[Program], Schedule],
    *,
    limit: int | None,
    disk: bool,
    workers: int,
) -> Schedule:
    """The schedule of ``program``, or of ``columns`` where the limit has no room for the head as a whole.

    Args:
        program: What runs.
        columns: The same with its head in pieces, if there is an engine for it.
        make: Expands either for the run's input.
        limit: As of :func:`~twoheads.graphs.schedule.spill.plan_spill`.
        disk: Likewise.
        workers: Likewise.
    """
    schedule = make(program)
    if limit is None or columns is None or not schedule.positions:
        return schedule
    try:
        plan_spill(schedule, limit=limit, disk=disk, workers=workers)
    except InputError:
        return make(columns)
    return schedule
