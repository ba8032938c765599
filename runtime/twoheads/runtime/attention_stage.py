"""Run one attention stage: every query block over its key tiles, merged inside the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program import AttentionEngine, AttentionStage
from twoheads.runtime.average_stage import Sampler, SamplerWorker
from twoheads.runtime.backend import Call
from twoheads.runtime.bias import BiasTiles
from twoheads.runtime.mask_tiles import MaskTiles
from twoheads.runtime.run_state import Row, RunState, WorkerCount

__all__ = ["run_attention"]


def run_attention(run: RunState, stage: AttentionStage) -> None:
    """Computes the output of ``stage`` for all query blocks; it must be allocated, as its inputs are."""
    shared = _Shared(run, stage)
    try:
        if shared.sampler is None:
            run.work(stage, run.rows(stage), lambda: _Worker(shared).row)
        else:  # what the sampler gathers over all rows is in no checkpoint
            run.crew.run(run.rows(stage), lambda: _Worker(shared).row)
    finally:
        shared.masks.close()
    if shared.sampler is not None:
        shared.sampler.finish()


class _Shared:
    """What the workers of one stage read: the tiles' tensors, the masks, the learned sinks as a first partial."""

    def __init__(self, run: RunState, stage: AttentionStage) -> None:
        self.run = run
        self.stage = stage
        self.engine = run.engines.attention_engine(stage.engine)
        stores = run.stores
        self.query, self.output = stores[stage.query], stores[stage.output.name]
        self.key_store, self.value_store = keys, values = stores[stage.key], stores[stage.value]
        self.cross = keys.value.axis != self.output.value.axis
        wrap = run.backend.tensor
        self.keys = [wrap(tile) for tile in keys.array]
        self.values = [wrap(tile) for tile in values.array]
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
        self.sampler = None if stage.average is None else Sampler(run, stage, self.engine)

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
        states = (_state(shared.engine), _state(shared.engine))
        self._final_lse = states[0][1]
        self._sampler = None if shared.sampler is None else SamplerWorker(shared.sampler, self._count)
        self._states = [(self._wrap(out), self._wrap(lse)) for out, lse in states]
        self._calls: dict[tuple[bool, bool], Call] = {}
        shape = shared.output.value.block_shape(shared.engine.block_size)
        self._query = None if shared.query.direct else np.empty(shared.query.block(0).shape, shared.query.value.dtype)
        self._output = None if shared.output.direct else np.empty(shape, shared.output.value.dtype)

    def row(self, row: Row) -> None:
        """Computes one query block."""
        block, segments = row
        shared = self._shared
        target = shared.output.block(block)
        remaining = sum(segment.tiles for segment in segments)
        if not remaining:
            target[...] = 0  # no query of the block sees a key
            return
        query = self._wrap(self._query_block(block))
        final = self._wrap(target if self._output is None else self._output)
        previous = shared.initial
        check = shared.run.crew.check
        for segment in segments:
            masked = shared.biased or not segment.full
            for tile in range(segment.start, segment.stop):
                check()
                remaining -= 1
                # In cross attention every block sees what the first one sees, all keys of the other axis.
                seen = 0 if shared.cross else block
                mask = shared.masks.tensor(seen, tile, full=segment.full) if masked else None
                # The last tile writes straight into the store; the two states alternate, so that no call reads what
                # it writes.
                out, lse = self._states[remaining & 1]
                self._tile(query, tile, mask, previous, final if remaining == 0 else out, lse)
                previous = (out, lse)
        if self._output is not None:
            np.copyto(target, self._output)
        if self._sampler is not None:
            self._sampler.add(block, query, target, self._final_lse)

    def _query_block(self, block: int) -> npt.NDArray[Any]:
        view = self._shared.query.block(block)
        if self._query is None:
            return view
        np.copyto(self._query, view)
        return self._query

    def _tile(self, query: Any, tile: int, mask: Any, previous: tuple[Any, Any] | None, out: Any, lse: Any) -> None:
        masked, merge = mask is not None, previous is not None
        call = self._calls.get((masked, merge))
        if call is None:
            call = self._calls[masked, merge] = self._open(masked, merge)
        for store in (self._shared.key_store, self._shared.value_store):
            store.touch(tile, store.nbytes // len(store.array))
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

    def _open(self, masked: bool, merge: bool) -> Call:
        variant = ("masked" if masked else "full") + ("_merge" if merge else "")
        return self._shared.run.engines.attention(self._shared.stage.engine, variant).new_call()


def _state(engine: AttentionEngine) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """An uninitialised partial result ``out [1, heads, block, v_head_dim]``, ``lse [1, heads, block]``."""
    shape = (1, engine.q_num_heads, engine.block_size)
    return np.empty((*shape, engine.v_head_dim), engine.dtype), np.empty(shape, np.float32)
