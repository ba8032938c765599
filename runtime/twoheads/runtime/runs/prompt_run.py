"""A run over whole blocks of a prompt, whose keys and values a sequence that grows keeps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.lengths import resolve_lengths
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.execution.executor import RunPlan
from twoheads.runtime.generation.kept.prompt_blocks import PromptRows
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.inputs.arrays import complete_arrays
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.runs.host_executor import HostExecutor, HostRun
from twoheads.runtime.runs.run_context import RunContext

__all__ = ["PromptRun"]

Array = npt.NDArray[Any]
OUTPUT = "hidden"


class PromptRun:
    """Runs a bundle over whole blocks behind those that are kept.

    A block's keys and values depend, to the bit, on the tokens up to its end alone, because every call of the tile
    program computes a block by itself: how many blocks one run computes makes no difference.

    Args:
        context: What runs.
        steps: How sequences are extended.
        several: Computes several blocks at the same time.
        single: Computes one block by all threads.
    """

    def __init__(self, context: RunContext, steps: Steps, several: HostExecutor, single: HostExecutor) -> None:
        self._context, self._steps = context, steps
        self._several, self._single = several, single

    def prepare(self, blocks: int) -> None:
        """Opens what a prompt of so many whole blocks needs."""
        for count in range(1, min(blocks, 2) + 1):  # one by all threads, several side by side
            with self._started(count, count) as run:
                run.prepare()

    def run(self, tokens: npt.NDArray[np.int64], kept: KeptBlocks, first: int, *, hidden: bool) -> PromptRows:
        """Computes the blocks of ``tokens`` behind the ``first`` ones, which ``kept`` has.

        Args:
            tokens: The whole sequence, ``[n]``, a multiple of the block.
            kept: Keys and values of the blocks in front; nothing is written to it.
            first: How many these are.
            hidden: Whether the hidden states of the last token are wanted.
        """
        steps, program = self._steps, self._context.program
        size = program.block_size
        blocks, made = len(tokens) // size, dict[str, Array]()
        (name,) = (entry.value.name for entry in program.inputs if entry.source == "argument")
        with self._started(blocks, blocks - first) as run:
            run.prepare()
            run.compute_only(range(first, blocks))
            run.known = {
                entry.value.name: partial(_fill, kept, at, first) for at, entry in enumerate(steps.kept) if first
            }
            inputs = complete_arrays(program, run.schedule.lengths, {name: tokens[None]})
            for number, stage in enumerate(run.stages(inputs), 1):
                for value in stage.outputs:
                    if value.name in steps.kept_names:
                        made[value.name] = _rows(run.stores[value.name], first, blocks)
                if number == steps.until_kept:
                    if not hidden:
                        break
                    run.compute_only([blocks - 1])
            last = np.array(run.stores[program.hidden].block(blocks - 1)[0, -1]) if hidden else None
            calls = run.calls
        return PromptRows([made[entry.value.name] for entry in steps.kept], last, calls)

    def _started(self, blocks: int, computed: int) -> AbstractContextManager[HostRun]:
        """A run of the program over so many blocks, of which so many are computed."""
        context, executor = self._context, self._single if computed == 1 else self._several
        lengths = resolve_lengths(context.program, blocks * context.program.block_size)
        schedule = make_schedule(
            context.program, lengths, output=OUTPUT, workers=executor.threads, process=context.process_bytes
        )
        return executor.start(RunPlan(schedule), None)


def _fill(kept: KeptBlocks, at: int, first: int, store: ValueStore) -> None:
    """The blocks that are kept; what a ring has forgotten no later token sees."""
    for block in range(first):
        rows = kept.whole_block(at, block, first)
        store.block(block)[...] = 0 if rows is None else rows


def _rows(store: ValueStore, first: int, stop: int) -> Array:
    """A copy of blocks ``[first, stop)`` of a value, one behind the other."""
    return np.concatenate([store.block(block) for block in range(first, stop)], store.value.token_axis)
