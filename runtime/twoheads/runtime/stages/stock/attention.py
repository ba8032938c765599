"""Run one attention stage on an engine that is nothing but softmax attention, by Lemma 3.1's synthetic token.

A call returns ``B / S`` beside the real keys' share ``y = A / S`` and the synthetic key's ``p0 = a / S``, where
``S = A + a`` and ``a = exp(c)`` with a score ``c`` that the host chooses per query. If ``c`` is the log-sum-exp of the
keys seen so far, ``p0`` is exactly their share, and merging takes no exponential: ``(B/S + p0 * out) / (y + p0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.costs.maskless_costs import needs_mask
from twoheads.graphs.masks.expressions import Intervals
from twoheads.graphs.masks.pieces import MasklessRow, Triangle, code_words, maskless_rows
from twoheads.graphs.program.program import AttentionStage, StockEngine
from twoheads.runtime.backends.protocol import Call
from twoheads.runtime.execution.run_state import Row, RunState, WorkerCount
from twoheads.runtime.memory.token_range import read_tokens, write_tokens
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles
from twoheads.runtime.stages.attention.mask_tiles import MaskTiles
from twoheads.runtime.stages.stock.operands import StockKeys, StockQueries
from twoheads.runtime.stages.stock.partial import StockPartial, stock_doubtful, stock_partial

__all__ = ["CODE_SCORE", "TRUSTED", "run_stock_attention", "stock_doubtful", "stock_partial"]

Array = npt.NDArray[Any]

TRUSTED = {"float32": 1e-33, "float16": 6e-5}
"""Shares below this are too close to the smallest normal number: the score was too far off, by 75 in float32."""

CODE_SCORE = 1000.0
"""By how much a score of another sub-block's key is lowered, at least."""

SAMPLES = 8
"""Keys from which the score for a query's first piece is estimated."""


def run_stock_attention(run: RunState, stage: AttentionStage) -> None:
    """Computes the output of ``stage`` for all queries; it must be allocated, as its inputs are."""
    shared = _Shared(run, stage)
    try:
        if shared.masks is None:
            rows = list(maskless_rows(stage.mask, shared.engine.block_size, shared.length))
            rows.sort(key=lambda row: -row.calls(shared.engine.key_tile))
            run.work(stage, rows, lambda: _Worker(shared).row, tokens=_row_tokens)
        else:
            run.work(stage, run.query_rows(stage), lambda: _Worker(shared).masked_row, tokens=run.row_tokens)
    finally:
        shared.close()


def _row_tokens(row: MasklessRow) -> tuple[int, int]:
    return row.start, row.start + row.size


class _Shared:
    """What the workers of one stage read."""

    def __init__(self, run: RunState, stage: AttentionStage) -> None:
        engine = run.engines.declared(StockEngine, stage.engine)
        self.run, self.stage, self.engine = run, stage, engine
        stores = run.stores
        self.query, self.output = stores[stage.query], stores[stage.output.name]
        self.keys, self.values = stores[stage.key], stores[stage.value]
        self.length = self.output.length
        view = run.engines.weights.view
        self.sinks = None if stage.sinks is None else view(stage.sinks).astype(np.float32)
        self.masks = self._masks() if needs_mask(stage) else None
        self._half = run.engines.half
        self.trusted = TRUSTED["float16" if self._half else engine.dtype]

    def digits(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """``values`` with the digits that the backend keeps of them."""
        return np.asarray(values, np.float16 if self._half else np.float32).astype(np.float32)

    def _masks(self) -> MaskTiles:
        engine = self.engine
        return MaskTiles(
            self.stage.mask,
            self._bias(),
            mask_heads=engine.mask_heads,
            block_size=engine.block_size,
            key_tile=engine.key_tile,
            length=self.length,
            wrap=self._with_synthetic_key,
            account=self.run.stores.account,
        )

    def _bias(self) -> BiasTiles | None:
        bias, view = self.stage.bias, self.run.engines.weights.view
        if bias is None:
            return None
        return BiasTiles(
            None if bias.table is None else view(bias.table),
            None if bias.slope is None else view(bias.slope),
            block_size=self.engine.block_size,
            key_tile=self.engine.key_tile,
        )

    def _with_synthetic_key(self, tile: Array) -> tuple[Array, Any]:
        """A mask tile with a column of 0 for the synthetic key in front, as an array and a tensor."""
        wide = np.concatenate([np.zeros((*tile.shape[:-1], 1), tile.dtype), tile], axis=-1)
        return wide, self.run.backend.tensor(wide)

    def close(self) -> None:
        if self.masks is not None:
            self.masks.close()


class _Worker:
    """One thread's buffers and calls."""

    def __init__(self, shared: _Shared) -> None:
        engine, wrap = shared.engine, shared.run.backend.tensor
        self._shared, self._engine, self._wrap = shared, engine, wrap
        self._count: WorkerCount = shared.run.counters[shared.stage.name].worker()
        self._forward, self._reversed = StockQueries.of(engine, wrap), StockQueries.of(engine, wrap)
        port = engine.ports("full")[1][0]
        result = np.zeros(port.shape, port.dtype)
        self._result, self._result_tensor = result[0], wrap(result)
        self._sides: dict[str, StockKeys] = {}
        self._calls: dict[str, Call] = {}
        self._partial = StockPartial(engine.q_num_heads, engine.block_size, engine.v_head_dim)

    def row(self, row: MasklessRow) -> None:
        """Computes one query block from its triangles and full keys."""
        self._begin(row.start, row.size)
        for triangle in row.triangles:
            self._triangle(triangle, row.size)
        for chunk in row.chunks(self._engine.key_tile):
            self._chunk(chunk, row.size)
        self._end(row.start, row.size)

    def masked_row(self, row: Row) -> None:
        """Computes one query block from its tiles, with masks."""
        block, segments = row
        size, tile_size, masks = self._engine.block_size, self._engine.key_tile, self._shared.masks
        assert masks is not None
        self._begin(block * size, size)
        for segment in segments:
            for tile in range(segment.start, segment.stop):
                self._shared.run.crew.check()
                stop = min((tile + 1) * tile_size, self._shared.length)
                mask, tensor = masks.tensor(block, tile, full=segment.full)
                side = self._side("masked")
                shown = np.arange(tile_size) < stop - tile * tile_size
                self._load(side.k[:, 1:], side.v[:, 1:], [(0, tile * tile_size, stop)], shown)
                call = self._call("masked")
                call.bind_input(3, tensor)
                self._step("masked", self._forward, side.k[:, 1:], size, mask[..., 1:], upper=False)
        self._end(block * size, size)

    def _begin(self, start: int, size: int) -> None:
        engine, length = self._engine, self._shared.length
        real = min(size, length - start)
        q = self._forward.q
        read_tokens(self._shared.query, start, start + real, q[:, :real, : engine.head_dim])
        q[:, real:] = 0
        q[:, :, engine.head_dim + 1 :] = 0
        self._partial.reset(self._shared.sinks)
        self._turned = False

    def _end(self, start: int, size: int) -> None:
        stop = min(start + size, self._shared.length)
        write_tokens(self._shared.output, start, stop, self._partial.out)

    def _triangle(self, triangle: Triangle, size: int) -> None:
        """One causal call; an upper triangle turns both queries and keys around."""
        self._shared.run.crew.check()
        engine, side = self._engine, self._side("causal")
        queries = self._turn(size) if triangle.upper else self._forward
        order = slice(None, None, -1 if triangle.upper else 1)
        k, v = side.k[:, 1 : 1 + size][:, order], side.v[:, 1 : 1 + size][:, order]
        first, last = max(0, triangle.start), min(triangle.start + size, self._shared.length)
        shown = triangle.columns(size)
        self._load(k, v, [(first - triangle.start, first, last)], shown)
        self._load(side.k[:, 1 + size :], side.v[:, 1 + size :], [], np.zeros(engine.block_size - size, np.bool_))
        self._encode(queries.q[:, :size][:, order], k, shown, triangle.sub_block)
        self._step("causal", queries, k, size, lambda: triangle.dense(size), upper=triangle.upper)

    def _turn(self, size: int) -> StockQueries:
        """The queries in reversed order."""
        if not self._turned:
            self._reversed.q[:, :size] = self._forward.q[:, :size][:, ::-1]
            self._reversed.q[:, size:] = 0
            self._turned = True
        return self._reversed

    def _encode(self, q: Array, k: Array, shown: npt.NDArray[np.bool_], sub_block: int) -> None:
        """Writes the codes that keep sub-blocks apart: a word to queries, minus its complement to keys."""
        engine = self._engine
        if not engine.code_size:
            return
        if not sub_block:
            q[..., engine.head_dim + 1 :] = 0
            return
        at = np.arange(q.shape[1]) // sub_block
        words = code_words(engine.code_size, int(at[-1]) + 1)[at]
        q[..., engine.head_dim + 1 :] = words * (CODE_SCORE / engine.scale)
        k[..., engine.head_dim + 1 :] = np.where(words | ~shown[:, None], 0, -1)

    def _chunk(self, chunk: Intervals, size: int) -> None:
        """One call for keys that all queries see."""
        self._shared.run.crew.check()
        engine, side = self._engine, self._side("full")
        spans: list[tuple[int, int, int]] = []
        at = 0
        for start, stop in chunk:
            spans.append((at, start, stop))
            at += stop - start
        self._load(side.k[:, 1:], side.v[:, 1:], spans, np.arange(engine.key_tile) < at)
        if engine.code_size:
            self._forward.q[..., engine.head_dim + 1 :] = 0
        self._step("full", self._forward, side.k[:, 1 : 1 + at], size, None, upper=False)

    def _load(self, k: Array, v: Array, spans: Iterable[tuple[int, int, int]], shown: npt.NDArray[np.bool_]) -> None:
        """Fills columns with keys ``(column, start, stop)``; a column that is not shown copies the synthetic key's
        score and has no value, so that it lowers all shares alike.
        """  # noqa: D205
        engine = self._engine
        for column, start, stop in spans:
            if start < stop:
                columns = slice(column, column + stop - start)
                read_tokens(self._shared.keys, start, stop, k[:, columns, : engine.head_dim])
                read_tokens(self._shared.values, start, stop, v[:, columns, : engine.v_head_dim])
        k[..., engine.head_dim :] = 0
        v[..., engine.v_head_dim :] = [1, 0]
        if not shown.all():
            hidden = ~shown
            k[:, hidden] = 0
            v[:, hidden] = 0
            k[:, hidden, engine.head_dim] = 1

    def _step(
        self,
        variant: str,
        queries: StockQueries,
        k: Array,
        size: int,
        seen: Array | Callable[[], Array] | None,
        *,
        upper: bool,
    ) -> None:
        """Calls the engine, again where a score was too far off, and merges the result.

        ``seen`` says what queries see of the columns ``k``: a mask to add, a function that gives a bool array, or
        ``None`` for all; it is looked at only if a call must be repeated.
        """
        partial = self._partial
        order = slice(None, None, -1 if upper else 1)
        q, result = queries.q[:, :size][:, order], self._result[:, :size][:, order]
        lse = partial.lse[:, :size]
        score = lse.copy()
        if np.isneginf(partial.lse).any() or partial.fresh:
            score = np.maximum(score, self._estimate(q, k, seen))
        score = self._set_score(q, score)
        self._run(variant, queries)
        doubtful = stock_doubtful(result, lse, self._shared.trusted)
        if doubtful.any():
            best = self._largest(q, k, seen)
            wrong = doubtful & (best > -np.inf)
            if wrong.any():
                score = self._set_score(q, np.where(wrong, best, score))
                self._run(variant, queries)
                self._count.repeats += 1
        partial.merge(size, result, score)

    def _set_score(self, q: Array, score: Array) -> Array:
        """Writes synthetic scores into the queries' coordinate; returns them as the engine's product rounds them."""
        at, scale = self._engine.head_dim, self._shared.digits(self._engine.scale)
        q[..., at] = self._shared.digits(score / np.float32(self._engine.scale))
        return self._shared.digits(q[..., at].astype(np.float32) * scale)

    def _run(self, variant: str, queries: StockQueries) -> None:
        call, side = self._call(variant), self._side(variant)
        call.bind_input(0, queries.tensor)
        for port, tensor in enumerate(side.tensors, start=1):
            call.bind_input(port, tensor)
        call.bind_output(0, self._result_tensor)
        call.run()
        self._count.calls += 1

    def _side(self, variant: str) -> StockKeys:
        if variant not in self._sides:
            self._sides[variant] = StockKeys.of(self._engine, variant, self._wrap)
        return self._sides[variant]

    def _call(self, variant: str) -> Call:
        if variant not in self._calls:
            self._calls[variant] = self._shared.run.engines.attention(self._shared.stage.engine, variant).new_call()
        return self._calls[variant]

    def _estimate(self, q: Array, k: Array, seen: Array | Callable[[], Array] | None) -> Array:
        """A guess at a log-sum-exp ``[heads, size]``: the largest score of a few columns, plus the log of all.

        Of a mask's columns those that a query sees count, if it sees any of the few.
        """
        step = max(1, k.shape[1] // SAMPLES)
        columns = slice(step // 2, None, step)
        scores = self._scores(q, k[:, columns])
        largest = scores.max(-1)
        if isinstance(seen, np.ndarray):
            masked = (scores + seen[..., columns]).max(-1)
            largest = np.where(masked > -np.inf, masked, largest)
        estimate: Array = largest + np.float32(np.log(k.shape[1]))
        return estimate

    def _scores(self, q: Array, k: Array) -> Array:
        """Scores ``[heads, size, columns]`` without the synthetic coordinate and codes."""
        width, heads, size = self._engine.head_dim, self._engine.q_num_heads, q.shape[1]
        grouped = q[..., :width].reshape(len(k), -1, width).astype(np.float32)
        products = grouped @ k[..., :width].astype(np.float32).swapaxes(1, 2)
        scores: Array = (products * np.float32(self._engine.scale)).reshape(heads, size, k.shape[1])
        return scores

    def _largest(self, q: Array, k: Array, seen: Array | Callable[[], Array] | None) -> Array:
        """The largest score of each query ``[heads, size]``, ``-inf`` where it sees no column."""
        scores = self._scores(q, k)
        if callable(seen):
            scores = np.where(seen(), scores, -np.inf)
        elif seen is not None:
            scores = scores + seen[:, : scores.shape[1]]
        largest: Array = scores.max(-1)
        return largest
