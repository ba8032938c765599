"""Run all layers of the model, block after block: one call each, which keeps its keys and values for the next ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.variants.model_steps import Kept, ModelStage
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.stages.window_masks import WindowMasks

__all__ = ["run_model"]


def run_model(run: RunState, stage: ModelStage) -> None:
    """Computes the outputs of ``stage`` for all blocks; they must be allocated, as its inputs are."""
    if run.crew.threads != 1 or run.only is not None:
        raise InternalError(f"stage {stage.name}: its blocks follow one another, in one thread")
    size = run.program.block_size
    held = stage.kept_bytes(size)
    run.stores.account(held)
    blocks = -(-run.stores[stage.outputs[0].name].length // size)
    run.work(stage, range(blocks), lambda: _start(run, stage, blocks * size), tokens=run.block_tokens)
    run.stores.account(-held)


def _start(run: RunState, stage: ModelStage, padded: int) -> Callable[[int], None]:
    """What computes a block; to be called for all of them, in order. ``padded`` tokens are in whole blocks."""
    call = run.engines.tokenwise(stage).new_call()
    count, wrap = run.counters[stage.name].worker(), run.backend.tensor
    inputs = [run.stores[name] for name in stage.inputs]
    outputs = [run.stores[value.name] for value in stage.outputs]
    # Tokens of padding see themselves, so that they stay numbers; no real token sees them.
    masks = [(window, WindowMasks(run, window.mask, padded)) for window in stage.windows]
    rings = [_Ring(entry, run.program.block_size, wrap) for entry in stage.kept]
    nothing = {ring.shape: wrap(np.zeros(ring.shape, ring.kept.value.dtype)) for ring in rings}

    def block(at: int) -> None:
        reads = [_without_padding(store, at) for store in inputs]
        tensors = [wrap(array) for array in reads]
        for window, made in masks:
            like = window.like(at)
            tensors.append(made.tensor(like, window.numbers(like)))
        for ring in rings:
            tensors += (nothing[ring.shape] if tile is None else ring.block(tile) for tile in ring.kept.numbers(at))
        for port, tensor in enumerate(tensors):
            call.bind_input(port, tensor)
        for port, tensor in enumerate(
            (*(wrap(store.block(at)) for store in outputs), *(ring.block(at) for ring in rings))
        ):
            call.bind_output(port, tensor)
        call.run()
        count.calls += 1

    return block


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
        self.kept = kept
        self.shape = kept.value.block_shape(block_size)
        self._slots = [wrap(np.empty(self.shape, kept.value.dtype)) for _ in range(kept.blocks)]

    def block(self, block: int) -> Any:
        """Where those of ``block`` lie; they replace what no later block sees."""
        last = self.kept.first and block == 0
        return self._slots[-1 if last else block % (self.kept.before + 1)]
