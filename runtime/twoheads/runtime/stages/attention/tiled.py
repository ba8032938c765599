"""Run one attention stage: every query block over its key tiles, merged or added up inside the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.costs.variant_counts import anchor_tile, sums_up
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.runtime.backends.protocol import Call
from twoheads.runtime.execution.run_state import Row, RunState, WorkerCount
from twoheads.runtime.stages.attention.anchored_row import AnchorBuffers, AnchoredRow
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles
from twoheads.runtime.stages.attention.mask_tiles import MaskTiles
from twoheads.runtime.stages.attention.sampled import Sampler, SamplerWorker

__all__ = ["run_attention"]

Array = npt.NDArray[Any]
State = tuple[Array, npt.NDArray[np.float32]]
"""A partial result ``out [1, heads, block, v_head_dim]``, ``lse [1, heads, block]``."""

Tiles = list[tuple[int, bool]]
"""Key tiles of a row, each with whether all of its keys are seen."""


def run_attention(run: RunState, stage: AttentionStage) -> None:
    """Computes the output of ``stage`` for all query blocks; it must be allocated, as its inputs are."""
    shared = _Shared(run, stage)
    try:
        rows, sampler = run.query_rows(stage), shared.sampler
        run.work(stage, rows, lambda: _Worker(shared).row, tokens=run.row_tokens, companion=sampler)
    finally:
        shared.masks.close()
    if shared.sampler is not None:
        shared.sampler.finish()


class _Shared:
    """What the workers of one stage read: the tiles' tensors, the masks, the learned sinks as a first partial."""

    def __init__(self, run: RunState, stage: AttentionStage) -> None:
        self.run = run
        self.stage = stage
        self.engine = run.engines.declared(AttentionEngine, stage.engine)
        stores = run.stores
        self.query, self.output = stores[stage.query], stores[stage.output.name]
        keys, values = stores[stage.key], stores[stage.value]
        # Stores in files are told of every tile that a call reads, with its bytes.
        self.files = [(store, store.nbytes // len(store.array)) for store in (keys, values) if store.path is not None]
        self.cross = keys.value.axis != self.output.value.axis
        wrap = run.backend.tensor
        self.keys, self.values = keys.tensors(wrap), values.tensors(wrap)
        self.biased = stage.bias is not None
        self.masks = MaskTiles(
            stage.mask,
            self._bias(),
            mask_heads=self.engine.mask_heads,
            block_size=self.engine.block_size,
            key_tile=self.engine.key_tile,
            length=keys.length,
            wrap=wrap,
            account=stores.account,
        )
        self.initial = self._sinks()
        self.adds = sums_up(stage, self.engine, lambda variant: run.engines.holds(stage.engine, variant))
        self.sampler = None if stage.average is None else Sampler(run, stage, self.engine)

    def new_call(self, variant: str) -> Call:
        """A call of one variant of the stage's engine."""
        return self.run.engines.attention(self.stage.engine, variant).new_call()

    def states(self) -> tuple[State, State]:
        """Two partial results of the calling thread, which its stages of this engine share."""
        return self.run.engines.kept(("states", self.engine), lambda: (_state(self.engine), _state(self.engine)))

    def anchored_row(self) -> AnchoredRow | None:
        """What adds up the rows of the calling thread, where rows are added up."""
        if not self.adds:
            return None
        buffers = self.run.engines.kept(("anchor", self.engine), lambda: AnchorBuffers(self.engine))
        return AnchoredRow(self.engine, self.new_call, self.run.backend.tensor, buffers)

    def _bias(self) -> BiasTiles | None:
        bias = self.stage.bias
        if bias is None:
            return None
        view = self.run.engines.weights.view
        return BiasTiles(
            None if bias.table is None else view(bias.table),
            None if bias.slope is None else view(bias.slope),
            block_size=self.engine.block_size,
            key_tile=self.engine.key_tile,
        )

    def _sinks(self) -> tuple[Any, Any] | None:
        """The partial result of the sinks alone: no output yet, and their logits as the weight so far."""
        if self.stage.sinks is None:
            return None
        out, lse = _state(self.engine)
        out[...] = 0
        lse[...] = self.run.engines.weights.view(self.stage.sinks).astype(np.float32)[:, None]
        return self.run.backend.tensor(out), self.run.backend.tensor(lse)


class _Worker:
    """One thread's calls and the two partial results between which its rows alternate."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._wrap = shared.run.backend.tensor
        self._count: WorkerCount = shared.run.counters[shared.stage.name].worker()
        states = shared.states()
        self._lse = states[0][1]
        self._anchored = shared.anchored_row()
        self._sampler = None if shared.sampler is None else SamplerWorker(shared.sampler, self._count)
        self._states = [(self._wrap(out), self._wrap(lse)) for out, lse in states]
        self._calls: dict[tuple[bool, bool], Call] = {}
        shape = shared.output.value.block_shape(shared.engine.block_size)
        self._query = None if shared.query.direct else np.empty(shared.query.block(0).shape, shared.query.value.dtype)
        self._output = None if shared.output.direct else np.empty(shape, shared.output.value.dtype)

    def row(self, row: Row) -> None:
        """Computes one query block."""
        block, segments = row
        target = self._shared.output.block(block)
        tiles = [(tile, segment.full) for segment in segments for tile in range(segment.start, segment.stop)]
        if not tiles:
            target[...] = 0  # no query of the block sees a key
            return
        query = self._query_block(block)
        tensor = self._wrap(query)
        lse = self._add(block, tiles, anchor_tile(segments, nearest=self._shared.biased), query, tensor, target)
        if lse is None:
            lse = self._merge(block, tiles, tensor, target)
        if self._sampler is not None:
            self._sampler.add(block, tensor, target, lse)

    def _add(
        self, block: int, tiles: Tiles, anchor: int | None, query: Array, tensor: Any, target: Array
    ) -> Array | None:
        """Adds the tiles up relative to tile ``anchor``; the log-sum-exp, or ``None`` if the row must be merged."""
        row, shared = self._anchored, self._shared
        if row is None or anchor is None:
            return None
        first = (anchor, True)
        self._tile(tensor, anchor, self._mask(block, first), shared.initial, *row.first)
        row.begin(query)
        for tile in tiles:
            if tile != first:
                shared.run.crew.check()
                self._touch(tile[0])
                row.add(shared.keys[tile[0]], shared.values[tile[0]], self._mask(block, tile))
        self._count.calls += len(tiles) - 1
        if row.finish(target):
            return row.lse
        self._count.repeats += len(tiles)
        return None

    def _merge(self, block: int, tiles: Tiles, query: Any, target: Array) -> Array:
        """Merges tile after tile by the log-sum-exp so far, which it returns in the end."""
        final = self._wrap(target if self._output is None else self._output)
        previous = self._shared.initial
        for remaining, tile in zip(reversed(range(len(tiles))), tiles, strict=True):
            self._shared.run.crew.check()
            # The last tile writes straight into the store; the two states alternate, so that no call reads what it
            # writes.
            out, lse = self._states[remaining & 1]
            self._tile(query, tile[0], self._mask(block, tile), previous, out if remaining else final, lse)
            previous = (out, lse)
        if self._output is not None:
            np.copyto(target, self._output)
        return self._lse

    def _mask(self, block: int, tile: tuple[int, bool]) -> Any:
        """The mask of a tile and whether all is seen of it; ``None`` where the engine needs none."""
        at, full = tile
        if full and not self._shared.biased:
            return None
        # In cross attention every block sees what the first one sees, all keys of the other axis.
        return self._shared.masks.tensor(0 if self._shared.cross else block, at, full=full)

    def _touch(self, tile: int) -> None:
        for store, nbytes in self._shared.files:
            store.touch(tile, nbytes)

    def _query_block(self, block: int) -> Array:
        view = self._shared.query.block(block)
        if self._query is None:
            return view
        np.copyto(self._query, view)
        return self._query

    def _tile(self, query: Any, tile: int, mask: Any, previous: tuple[Any, Any] | None, out: Any, lse: Any) -> None:
        masked, merge = mask is not None, previous is not None
        call = self._calls.get((masked, merge))
        if call is None:
            call = self._calls[masked, merge] = self._shared.new_call(
                ("masked" if masked else "full") + "_merge" * merge
            )
        self._touch(tile)
        call.bind_input(0, query)
        call.bind_input(1, self._shared.keys[tile])
        call.bind_input(2, self._shared.values[tile])
        port = 3
        if mask is not None:
            call.bind_input(port, mask)
            port += 1
        if previous is not None:
            call.bind_input(port, previous[0])
            call.bind_input(port + 1, previous[1])
        call.bind_output(0, out)
        call.bind_output(1, lse)
        call.run()
        self._count.calls += 1


def _state(engine: AttentionEngine) -> State:
    """An uninitialised partial result."""
    shape = (1, engine.q_num_heads, engine.block_size)
    return np.empty((*shape, engine.v_head_dim), np.float32), np.empty(shape, np.float32)
