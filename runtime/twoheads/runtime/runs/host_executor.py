"""Run a schedule: body stages in order, each stage's blocks in parallel, every value freed after its last reader."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.program import AttentionStage, SequenceStage, Stage, TokenwiseStage, outputs_of
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.half_range import check_half_range
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.stages.attention.packed import prepare_packed, run_packed_attention
from twoheads.runtime.stages.attention.tiled import run_attention
from twoheads.runtime.stages.fused import run_fused
from twoheads.runtime.stages.head import run_head
from twoheads.runtime.stages.pooling import pool
from twoheads.runtime.stages.sequence import run_sequence
from twoheads.runtime.stages.stock.attention import run_stock_attention
from twoheads.runtime.stages.stock.oracle import run_oracle_attention
from twoheads.runtime.stages.tokenwise import run_tokenwise

__all__ = ["compute", "prepare", "run_stage"]


def prepare(run: RunState) -> float:
    """Opens the engines that the run needs and that are not open yet; returns the seconds it took."""
    began = time.perf_counter()
    needed = {plan.name for plan in run.schedule.stages}
    stages = [stage for stage in (*run.program.body, *run.program.head) if stage.name in needed]

    def open_engine(stage: Stage) -> None:
        if isinstance(stage, AttentionStage) and run.coded is not None:
            prepare_packed(run, stage)
        elif isinstance(stage, AttentionStage):
            run.engines.prepare_attention(stage.engine)
        elif isinstance(stage, TokenwiseStage):
            run.engines.tokenwise(stage)

    run.crew.run(stages, lambda: open_engine)
    return time.perf_counter() - began


def compute(
    run: RunState,
    inputs: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    sink: Sink | None,
) -> npt.NDArray[Any] | None:
    """Computes the schedule's output.

    Args:
        run: A fresh run.
        inputs: An array for every input value, shaped as the value with all tokens.
        positions: Rows of ``logits`` or ``hidden`` that are wanted, ``None`` for all.
        sink: Where rows go, or ``None``.

    Returns:
        The output's array (see :class:`~twoheads.runtime.reports.report.Result`), or ``None`` with a sink.
    """
    run_body(run, inputs)
    schedule, program = run.schedule, run.program
    if schedule.output == "logits" and program.logits is not None and program.pooled_logits:
        return _seen(run, run.stores[program.logits].whole().reshape(-1).astype(np.float32))
    length = run.stores[program.hidden].length
    if schedule.output in ("logits", "last"):
        if schedule.output == "last":
            positions = np.array([length - 1])
        needed = {plan.name for plan in schedule.stages}
        stages = tuple(stage for stage in program.head if stage.name in needed)
        return run_head(run, stages, positions, sink)
    if schedule.output == "embedding":
        if program.pooling is None:
            raise InternalError(f"{program.name} has no pooling")
        return _seen(run, pool(run.stores[program.hidden].rows()[:length], program.pooling))
    return _hidden_rows(run, positions, sink)


def run_body(run: RunState, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Runs the body, or what a checkpoint leaves of it.

    Afterwards the hidden states are in their store, and nothing that was released.
    """
    done = frozenset[str]() if run.checkpoints is None else run.checkpoints.restore()
    gone = {name for stage in done for name in run.schedule.release_after.get(stage, ())}
    for entry in run.program.inputs:
        if entry.value.name not in gone:
            run.stores.allocate(entry.value).fill(inputs[entry.value.name])
    needed = {plan.name for plan in run.schedule.stages} - done
    for stage in run.program.body:
        if stage.name in needed:
            run_stage(run, stage)


def run_stage(run: RunState, stage: Stage) -> None:
    """Computes ``stage``, or the run's blocks of it, from its inputs' stores; frees what no later stage reads."""
    began = time.perf_counter()
    partly = run.checkpoints is not None and run.checkpoints.is_partly_done(stage)
    stores = [run.stores.allocate(value, reopen=partly, blocks=run.only) for value in outputs_of(stage)]
    if isinstance(stage, FusedStage):
        run_fused(run, stage)
    elif isinstance(stage, TokenwiseStage):
        run_tokenwise(run, stage)
    elif isinstance(stage, SequenceStage):
        run_sequence(run, stage)
    elif run.coded is not None:
        run_packed_attention(run, stage, run.coded)
    elif run.engines.stock_engine(stage.engine) is not None:
        run_stock_attention(run, stage)
    elif run.engines.oracle_engine(stage.engine) is not None:
        run_oracle_attention(run, stage)
    else:
        run_attention(run, stage)
    # Each call of all layers needs the one before it; calls of other stages need none of their own.
    run.rounds += (
        run.counters[stage.name].calls
        if isinstance(stage, FusedStage) and stage.whole
        else not isinstance(stage, SequenceStage)
    )
    for store in stores:
        store.zero_padding()
        for block, used in enumerate(run.packing.used if run.packing is not None else ()):
            store.zero_rows(block, used)
    if isinstance(stage, TokenwiseStage):
        rows = max((store.length for store in stores if store.value.axis is not None), default=0)
        check_half_range(stage.name, stores, run.blocks(-(-rows // run.program.block_size)))
    run.counters[stage.name].seconds += time.perf_counter() - began
    if isinstance(stage, TokenwiseStage) and run.program.lookup_limits(stage):
        run.engines.weights.let_go(stage.weights)
    released = run.schedule.release_after.get(stage.name, ())
    if run.checkpoints is not None:
        run.checkpoints.finish(stage, released)
    run.stores.release(released)


def _seen(run: RunState, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A result that is one vector, looked at."""
    run.finite.see(vector[None])
    return vector


def _hidden_rows(run: RunState, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> npt.NDArray[Any] | None:
    """The wanted rows of the hidden states, in memory or block by block into the sink."""
    store = run.stores[run.program.hidden]
    rows = store.length if positions is None else len(positions)
    if sink is None:
        wanted = store.rows()[:rows] if positions is None else store.rows()[positions]
        run.finite.see(wanted)
        return wanted.astype(np.float32)
    size = store.block_size
    for start in range(0, rows, size):
        block = store.block(start // size)[0] if positions is None else store.rows()[positions[start : start + size]]
        part = block[: rows - start]
        run.finite.see(part, start)
        sink.write(start, part.astype(np.float32, copy=False))
    return None
