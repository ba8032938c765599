"""The sampled part of an attention (Theorem 4.1): drawn keys, their scaled sums, and what their spread tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.sampling import Average, draw_keys, sampled_row
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.runtime.execution.run_state import RunState, WorkerCount
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.reports.sampling import BlockStatistics, summarize_stage
from twoheads.runtime.stages.attention.merge import merge_state

__all__ = ["Sampler", "SamplerWorker"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _KeptStatistics:
    """What a checkpoint says: what was seen, by the number of the block."""

    blocks: dict[str, BlockStatistics]


class Sampler:
    """What the workers of one sampled stage share.

    Args:
        run: The run; keys and values must be there.
        stage: A stage with an ``average``.
        engine: Its engine.
    """

    def __init__(self, run: RunState, stage: AttentionStage, engine: AttentionEngine) -> None:
        if stage.average is None:
            raise InternalError(f"stage {stage.name} samples nothing")
        self.run, self.stage, self.engine = run, stage, engine
        self.average: Average = stage.average
        self.query, self.keys, self.values = (run.stores[name] for name in (stage.query, stage.key, stage.value))
        self.length = run.stores[stage.key].length
        # Softmax ignores a constant added to all keys, unless a softcap comes between.
        heads, width = engine.kv_num_heads, engine.head_dim
        self.centre = np.zeros((heads, width)) if engine.softcap else _mean(self.keys, self.length)
        self.key_norm = _largest_norm(self.keys, self.length, self.centre)
        self.value_norm = _largest_norm(self.values, self.length, np.zeros((heads, engine.v_head_dim)))
        self._blocks: dict[int, BlockStatistics] = {}

    def record(self, block: int, statistics: BlockStatistics) -> None:
        """Keeps what was seen in ``block``."""
        self._blocks[block] = statistics

    def save(self) -> dict[str, Any]:
        """What was seen in the blocks so far, for a checkpoint."""
        return {str(block): to_json(statistics) for block, statistics in self._blocks.items()}

    def restore(self, saved: Any, done: int) -> bool:
        """Takes back what an earlier process saw.

        Raises:
            FormatError: It is not what was seen in ``done`` blocks, or in some of them.
        """
        kept = from_json(_KeptStatistics, {"blocks": saved}, "companion")
        if len(kept.blocks) > done or not all(block.isdecimal() for block in kept.blocks):
            raise FormatError(f"companion: {len(kept.blocks)} blocks are kept, and {done} are done")
        self._blocks = {int(block): seen for block, seen in kept.blocks.items()}
        return True

    def finish(self) -> None:
        """Gives the run the stage's estimate."""
        ordered = (self._blocks[block] for block in sorted(self._blocks))
        sampled = self.average.samples * self.engine.key_tile
        estimate = summarize_stage(self.stage.name, ordered, sampled_keys=sampled, width=self.engine.v_head_dim)
        if estimate is not None:
            self.run.estimates.append(estimate)


class SamplerWorker:
    """One thread's gathered tiles and their partial results.

    Args:
        sampler: What it shares with others.
        count: Its engine calls.
    """

    def __init__(self, sampler: Sampler, count: WorkerCount) -> None:
        self._sampler = sampler
        self._count = count
        engine, wrap = sampler.engine, sampler.run.backend.tensor
        inputs, outputs = engine.ports("full")
        samples = sampler.average.samples
        self._key, self._value = (np.empty(port.shape, port.dtype) for port in inputs[1:])
        self._out, self._lse = (np.empty((samples, *port.shape), port.dtype) for port in outputs)
        self._results = [(wrap(self._out[at]), wrap(self._lse[at])) for at in range(samples)]
        self._call = sampler.run.engines.attention(engine.name, "full").new_call()
        self._call.bind_input(1, wrap(self._key))
        self._call.bind_input(2, wrap(self._value))

    def add(self, block: int, query: Any, target: Array, lse: Array) -> None:
        """Merges the sampled part of ``block`` into its exact part.

        Args:
            block: The query block.
            query: Its queries, a tensor of the backend.
            target: The exact part's output ``[1, heads, block_size, v_head_dim]``; overwritten with the merged one.
            lse: The exact part's log-sum-exp ``[1, heads, block_size]``.
        """
        sampler, engine = self._sampler, self._sampler.engine
        sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile, "length": sampler.length}
        row = sampled_row(sampler.stage.mask, sampler.average, block, **sizes)
        if not row.remaining:
            return
        drawn = draw_keys(sampler.average, sampler.stage.name, block, row.remaining, engine.key_tile)
        self._call.bind_input(0, query)
        for positions, (out_at, lse_at) in zip(drawn, self._results, strict=True):
            sampler.run.crew.check()
            _gather(sampler.keys, positions, self._key)
            _gather(sampler.values, positions, self._value)
            self._call.bind_output(0, out_at)
            self._call.bind_output(1, lse_at)
            self._call.run()
            self._count.calls += 1
        scale = math.log(row.remaining_keys / drawn.size)
        sampled_out, sampled_lse = self._united(scale)
        merged_out, merged_lse = merge_state(target, lse, sampled_out, sampled_lse)
        rows = min(engine.block_size, sampler.length - block * engine.block_size)
        statistics = self._statistics(
            block, rows, row.remaining_keys, scale, merged_out[0], merged_lse[0], sampled_out[0], sampled_lse[0]
        )
        sampler.record(block, statistics)
        target[...] = merged_out

    def _united(self, scale: float) -> tuple[Array, Array]:
        """``(out, lse)`` of all drawn tiles together, scaled to the keys that they stand for."""
        out, lse = self._out[0], self._lse[0]
        for at in range(1, len(self._out)):
            out, lse = merge_state(out, lse, self._out[at], self._lse[at])
        return out, lse + np.float32(scale)

    def _statistics(
        self,
        block: int,
        rows: int,
        remaining: int,
        scale: float,
        out: Array,
        lse: Array,
        sampled_out: Array,
        sampled_lse: Array,
    ) -> BlockStatistics:
        """Of the block's ``rows`` real queries, from ``out [heads, block_size, v_head_dim]`` and ``lse``."""
        norms = np.linalg.norm(out[:, :rows].astype(np.float64), axis=-1)
        errors = self._errors(rows, remaining, scale, out, lse)
        bound, log_d = self._constants(block, rows, remaining, sampled_out, sampled_lse)
        positive = norms > 0
        return BlockStatistics(
            queries=norms.size,
            error=None if errors is None else float((errors**2).sum()),
            norm=float((norms**2).sum()),
            worst=None if errors is None else float((errors[positive] / norms[positive]).max(initial=0.0)),
            bound=bound,
            log_d=log_d,
            remaining=remaining,
        )

    def _errors(self, rows: int, remaining: int, scale: float, out: Array, lse: Array) -> Array | None:
        """The standard error ``[heads, rows]`` of each output's norm, from the spread between the drawn tiles.

        To first order the error of the ratio ``B / A`` is that of ``B - out A``, over ``A``: a sum of one term for each
        drawn tile, whose variance is estimated from theirs. Tiles drawn without replacement vary less, by the share
        that was not drawn.
        """
        samples = len(self._out)
        if samples < 2:
            return None
        weights = np.exp(self._lse[:, 0, :, :rows].astype(np.float64) + scale - lse[:, :rows])
        terms = weights[..., None] * (self._out[:, 0, :, :rows].astype(np.float64) - out[:, :rows])
        spread = np.square(terms - terms.mean(0)).sum((0, -1)) / (samples - 1)
        left = 1 - samples * self._key.shape[2] / remaining
        errors: Array = np.sqrt(samples * spread * left)
        return errors

    def _constants(
        self, block: int, rows: int, remaining: int, sampled_out: Array, sampled_lse: Array
    ) -> tuple[float, float]:
        """``log C`` and ``log D`` by the norms of this block's queries and of all keys and values."""
        sampler, engine = self._sampler, self._sampler.engine
        group = engine.q_num_heads // engine.kv_num_heads
        queries = sampler.query.block(block)[0, :, :rows].astype(np.float64) * engine.scale
        key_norm, value_norm = (np.repeat(norm, group)[:, None] for norm in (sampler.key_norm, sampler.value_norm))
        bounds = np.linalg.norm(queries, axis=-1) * key_norm
        if engine.softcap:
            bounds = np.minimum(bounds, engine.softcap)
        shift = np.einsum("hqd,hd->hq", queries, np.repeat(sampler.centre, group, 0))
        with np.errstate(divide="ignore"):
            norms = np.log(np.linalg.norm(sampled_out[:, :rows].astype(np.float64), axis=-1))
            total = sampled_lse[:, :rows] - shift + norms
            log_d = total - math.log(remaining) - bounds - np.log(value_norm)
        return float(bounds.max()), float(np.nan_to_num(log_d, nan=-np.inf, neginf=-1e4).min())


def _gather(store: ValueStore, positions: npt.NDArray[np.int64], target: Array) -> None:
    """Copies the tokens at ``positions [key_tile]`` of a value into ``target [1, heads, key_tile, width]``."""
    tile, at = np.divmod(positions, store.array.shape[3])
    store.touch(int(tile[0]), target.nbytes)
    np.copyto(target[0], store.array[tile, 0, :, at].swapaxes(0, 1))


def _mean(store: ValueStore, length: int) -> Array:
    """The mean ``[heads, width]`` over all tokens of a value ``[1, heads, n, width]``; padding is zero."""
    total = np.zeros(store.array.shape[2:5:2])
    for tile in range(len(store.array)):
        total += store.tile(tile).sum((0, 2), dtype=np.float64)
    return total / length


def _largest_norm(store: ValueStore, length: int, centre: Array) -> Array:
    """The largest distance ``[heads]`` of a token from ``centre [heads, width]``."""
    size = store.array.shape[3]
    largest = np.zeros(len(centre))
    for tile in range(len(store.array)):
        tokens = store.tile(tile)[0, :, : max(0, length - tile * size)]
        largest = np.maximum(largest, np.linalg.norm(tokens - centre[:, None], axis=-1).max(1, initial=0.0))
    return largest
