"""Run one stage of windowed attention and the region behind it: one call a block, straight from store to store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.tiles import mask_tile, tile_key
from twoheads.graphs.window_steps import WindowStage
from twoheads.runtime.run_state import RunState
from twoheads.runtime.stores import ValueStore

__all__ = ["run_window"]

HIDDEN = -1e30
"""Added to the scores of hidden keys: finite, so that a row of padding that sees nothing stays a row of numbers."""

NARROW_HIDDEN = -3e4
"""The same in half precision: half of its range, so that a score may be added to it."""


def run_window(run: RunState, stage: WindowStage) -> None:
    """Computes the outputs of ``stage`` for the run's blocks; they must be allocated, as its inputs are."""
    handle = run.engines.tokenwise(stage)
    query, key, value, *others = (run.stores[name] for name in stage.inputs)
    outputs = [run.stores[output.name] for output in stage.outputs]
    masks = _Masks(run, stage, query.length)
    counter, wrap = run.counters[stage.name], run.backend.tensor
    nothing = [wrap(np.zeros(store.value.block_shape(store.block_size), store.value.dtype)) for store in (key, value)]
    first_other = 2 + 2 * stage.tiles

    def start() -> Callable[[int], None]:
        call, count = handle.new_call(), counter.worker()

        def bind_tiles(store: ValueStore, zeros: Any, block: int, port: int) -> None:
            for at in range(stage.tiles):
                tile = block - stage.before + at
                inside = 0 <= tile < masks.blocks
                call.bind_input(port + at, wrap(store.block(tile)) if inside else zeros)

        def block(at: int) -> None:
            call.bind_input(0, wrap(query.block(at)))
            bind_tiles(key, nothing[0], at, 1)
            bind_tiles(value, nothing[1], at, 1 + stage.tiles)
            call.bind_input(first_other - 1, masks.tensor(at))
            for port, store in enumerate(others, first_other):
                call.bind_input(port, wrap(store.block(at)))
            for port, store in enumerate(outputs):
                call.bind_output(port, wrap(store.block(at)))
            call.run()
            count.calls += 1

        return block

    run.work(stage, run.blocks(masks.blocks), start, tokens=run.block_tokens)


class _Masks:
    """The additive masks ``[1, block, tiles * block]`` of one stage, each distinct one made once. Thread-safe."""

    def __init__(self, run: RunState, stage: WindowStage, length: int) -> None:
        size = run.program.block_size
        self.blocks = -(-length // size)
        self._stage = stage
        self._sizes = {"block_size": size, "key_tile": size, "length": length}
        self._shape = (size, size)
        self._hidden = np.float32(NARROW_HIDDEN if run.engines.narrow else HIDDEN)
        self._wrap = run.backend.tensor
        self._lock = threading.Lock()
        self._made: dict[Hashable, Any] = {}

    def tensor(self, block: int) -> Any:
        """The mask of query block ``block``."""
        first = block - self._stage.before
        tiles = [tile if 0 <= tile < self.blocks else None for tile in range(first, first + self._stage.tiles)]
        mask = self._stage.mask
        key = tuple(None if tile is None else tile_key(mask, block, tile, **self._sizes) for tile in tiles)
        with self._lock:
            if key not in self._made:
                parts = [self._tile(block, tile) for tile in tiles]
                self._made[key] = self._wrap(np.ascontiguousarray(np.concatenate(parts, axis=1)[None]))
            return self._made[key]

    def _tile(self, block: int, tile: int | None) -> npt.NDArray[np.float32]:
        if tile is None:
            return np.full(self._shape, self._hidden)
        visible = mask_tile(self._stage.mask, block, tile, **self._sizes)
        return np.where(visible, np.float32(0), self._hidden)
