"""Run one stage that stands for several: one call a block, which attends to tiles of other blocks, perhaps kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.fused import FusedStage, Kept, PortRead
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.stages.fused_masks import FusedMasks

__all__ = ["run_fused"]


def run_fused(run: RunState, stage: FusedStage) -> None:
    """Computes the outputs of ``stage`` for the run's blocks; they must be allocated, as its inputs are."""
    if stage.whole and (run.crew.threads != 1 or run.only is not None):
        raise InternalError(f"stage {stage.name}: its blocks follow one another, in one thread")
    held = stage.kept_bytes(run.program.block_size)
    run.stores.account(held)
    shared = _Shared(run, stage)
    run.work(stage, run.blocks(shared.blocks), shared.worker, tokens=run.block_tokens)
    run.stores.account(-held)


class _Shared:
    """What the workers of one stage read, and the blocks that are kept."""

    def __init__(self, run: RunState, stage: FusedStage) -> None:
        self._run, self._stage = run, stage
        self._outputs = [run.stores[value.name] for value in stage.outputs]
        size, length = run.program.block_size, self._outputs[0].length
        self.blocks = -(-length // size)
        # Where keys are made in the call, tokens of padding see themselves, so that they stay numbers; no real token
        # sees them.
        seen = self.blocks * size if stage.whole else length
        self._masks = [FusedMasks(run, window.mask, seen) for window in stage.windows]
        self._rings = {entry.value.name: _Ring(entry, size, run.backend.tensor) for entry in stage.kept}
        states = [np.zeros(port.shape, port.dtype) for port in (*stage.states, *stage.states)]
        # Of each state two arrays, which take turns from block to block.
        self._states = [run.backend.tensor(state) for state in states]
        self._nothing: dict[tuple[int, ...], Any] = {}

    def worker(self) -> Callable[[int], None]:
        """What computes a block, for one thread; of a whole one, to be called for all of them, in order."""
        run, stage = self._run, self._stage
        call, wrap = run.engines.tokenwise(stage).new_call(), run.backend.tensor
        count, outputs = run.counters[stage.name].worker(), self._outputs
        dropped = [np.empty(store.value.block_shape(store.block_size), store.value.dtype) for store in outputs]

        def block(at: int) -> None:
            given = [self._given(read, at) for read in stage.reads]
            for port, tensor in enumerate(given):
                call.bind_input(port, tensor)
            written = [
                store.block(at) if store.holds(at) else spare for store, spare in zip(outputs, dropped, strict=True)
            ]
            for port, array in enumerate(written):
                call.bind_output(port, wrap(array))
            for port, ring in enumerate(self._rings.values(), len(written)):
                call.bind_output(port, ring.block(at))
            for number in range(len(stage.states)):
                call.bind_output(len(written) + len(self._rings) + number, self._state(number, at + 1))
            call.run()
            count.calls += 1

        return block

    def _given(self, read: PortRead, at: int) -> Any:
        """What a port is given for block ``at``."""
        if read.state is not None:
            return self._state(read.state, at)
        if not read.value:
            window = self._stage.windows[read.window]
            like = window.like(at) if self._stage.whole else at
            return self._masks[read.window].tensor(like, window.numbers(like, self.blocks))
        number, ring = read.number(at, self.blocks), self._rings.get(read.value)
        if ring is not None:
            return self._zeros(ring.shape, ring.dtype) if number is None else ring.block(number)
        store = self._run.stores[read.value]
        if number is None:
            return self._zeros(store.value.block_shape(store.block_size), store.value.dtype)
        return self._run.backend.tensor(_without_padding(store, number) if self._stage.whole else store.block(number))

    def _state(self, number: int, at: int) -> Any:
        """A state before block ``at``; zeros before the first."""
        return self._states[number + at % 2 * len(self._stage.states)]

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        if shape not in self._nothing:
            self._nothing[shape] = self._run.backend.tensor(np.zeros(shape, dtype))
        return self._nothing[shape]


def _without_padding(store: ValueStore, block: int) -> npt.NDArray[Any]:
    """A block of ``store`` in which the last real token stands for those of padding.

    Whatever a model makes of zeros, perhaps no number, would reach the other tokens of its block: hidden keys have a
    weight of 0, and 0 times that is no number either.
    """
    array = store.block(block)
    used = store.length - block * store.block_size
    if store.value.axis is None or used >= store.block_size:
        return array
    rows = np.minimum(np.arange(store.block_size), used - 1)
    return np.ascontiguousarray(np.take(array, rows, store.value.token_axis))


class _Ring:
    """Tensors of the keys or values of a layer in the last blocks, and of the first block where it is kept.

    Args:
        kept: What is kept.
        block_size: Tokens of a block.
        wrap: Makes a backend's tensor of an array.
    """

    def __init__(self, kept: Kept, block_size: int, wrap: Callable[[npt.NDArray[Any]], Any]) -> None:
        self._kept = kept
        self.shape, self.dtype = kept.value.block_shape(block_size), kept.value.dtype
        self._slots = [wrap(np.empty(self.shape, self.dtype)) for _ in range(kept.blocks)]

    def block(self, block: int) -> Any:
        """Where those of ``block`` lie; they replace what no later block sees."""
        last = self._kept.first and block == 0
        return self._slots[-1 if last else block % (self._kept.before + 1)]
