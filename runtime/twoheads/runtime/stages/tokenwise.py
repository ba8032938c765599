"""Run one token-wise stage: one call a block, straight from store to store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TokenwiseStage
from twoheads.runtime.bundle.token_table import TokenTable
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["run_tokenwise", "scratch_block"]


def run_tokenwise(run: RunState, stage: TokenwiseStage) -> None:
    """Computes the outputs of ``stage`` for the run's blocks, or once; they must be allocated, as its inputs are.

    Row values are the same array in every block. Where everything is a row value, there is one call.
    """
    handle = run.engines.tokenwise(stage)
    inputs = [run.stores[name] for name in stage.inputs]
    outputs = [run.stores[value.name] for value in stage.outputs]
    counter = run.counters[stage.name]
    wrap = run.backend.tensor
    fetched = _fetched(run, stage)

    def start() -> Callable[[int], None]:
        call = handle.new_call()
        count = counter.worker()
        reads = [scratch_block(store) for store in inputs]
        writes = [scratch_block(store) for store in outputs]
        # A scratch block stays bound; the others are rebound for every block.
        for port, scratch in enumerate(reads):
            if scratch is not None:
                call.bind_input(port, wrap(scratch))
        for port, scratch in enumerate(writes):
            if scratch is not None:
                call.bind_output(port, wrap(scratch))

        def block(at: int) -> None:
            for port, (store, scratch) in enumerate(zip(inputs, reads, strict=True)):
                if scratch is None:
                    call.bind_input(port, wrap(store.block(at)))
                else:
                    np.copyto(scratch, store.block(at))
            for port, (store, scratch) in enumerate(zip(outputs, writes, strict=True)):
                if scratch is None:
                    call.bind_output(port, wrap(store.block(at)))
            for table, store in fetched:
                table.fetch(store.block(at))
            call.run()
            count.calls += 1
            for store, scratch in zip(outputs, writes, strict=True):
                if scratch is not None:
                    np.copyto(store.block(at), scratch)

        return block

    lengths = {store.length for store in (*outputs, *inputs) if store.value.axis is not None}
    if len(lengths) > 1:
        raise InternalError(f"stage {stage.name}: values of {sorted(lengths)} rows in one token-wise stage")
    blocks = run.blocks(-(-max(lengths, default=1) // run.program.block_size))
    run.work(stage, blocks, start, tokens=run.block_tokens)


def _fetched(run: RunState, stage: TokenwiseStage) -> list[tuple[TokenTable, ValueStore]]:
    """Tables whose rows are fetched before they are read, each with the numbers of rows that may be read."""
    tables = [run.engines.weights.table(name) for name in sorted(run.engines.tables(stage))]
    limits = {entry.value.name: entry.limit for entry in run.program.inputs if entry.value.name in stage.inputs}
    return [
        (table, run.stores[name]) for table in tables for name, limit in limits.items() if limit == len(table.array)
    ]


def scratch_block(store: ValueStore) -> npt.NDArray[Any] | None:
    """A contiguous block for stores whose own blocks are not (keys and values of tiles wider than a block)."""
    return None if store.direct else np.empty(store.value.block_shape(store.block_size), store.value.dtype)
