"""Run one stage of windowed attention and the region behind it: one call a block, straight from store to store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twoheads.graphs.variants.window_steps import WindowStage
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.stages.window_masks import WindowMasks

__all__ = ["run_window"]


def run_window(run: RunState, stage: WindowStage) -> None:
    """Computes the outputs of ``stage`` for the run's blocks; they must be allocated, as its inputs are."""
    handle = run.engines.tokenwise(stage)
    query, key, value, *others = (run.stores[name] for name in stage.inputs)
    outputs = [run.stores[output.name] for output in stage.outputs]
    masks = WindowMasks(run, stage.mask, query.length)
    blocks = -(-query.length // run.program.block_size)
    counter, wrap = run.counters[stage.name], run.backend.tensor
    nothing = [wrap(np.zeros(store.value.block_shape(store.block_size), store.value.dtype)) for store in (key, value)]
    first_other = 2 + 2 * stage.tiles

    def start() -> Callable[[int], None]:
        call, count = handle.new_call(), counter.worker()

        def bind_tiles(store: ValueStore, zeros: Any, tiles: tuple[int | None, ...], port: int) -> None:
            for at, tile in enumerate(tiles, port):
                call.bind_input(at, zeros if tile is None else wrap(store.block(tile)))

        def block(at: int) -> None:
            call.bind_input(0, wrap(query.block(at)))
            tiles = stage.numbers(at, blocks)
            bind_tiles(key, nothing[0], tiles, 1)
            bind_tiles(value, nothing[1], tiles, 1 + stage.tiles)
            call.bind_input(first_other - 1, masks.tensor(at, tiles))
            for port, store in enumerate(others, first_other):
                call.bind_input(port, wrap(store.block(at)))
            for port, store in enumerate(outputs):
                call.bind_output(port, wrap(store.block(at)))
            call.run()
            count.calls += 1

        return block

    run.work(stage, run.blocks(blocks), start, tokens=run.block_tokens)
