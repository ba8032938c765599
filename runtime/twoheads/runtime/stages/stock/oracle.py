"""Run one attention stage on a plain small transformer: independent instances packed into its heads and layers.

An instance is one head's attention of one query block over one piece of its keys. All instances of a stage are
independent (one round): their synthetic scores come from an estimate, not from each other. Instance ``t`` of a query
with synthetic score ``c`` gives ``A_t = y / p0`` and ``B_t = (B / S) / p0`` in units of ``exp(c)``, and they add:
``out = sum B_t / sum A_t``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.expressions import Intervals
from twoheads.graphs.masks.pieces import MasklessRow, Triangle, code_words, maskless_rows
from twoheads.graphs.program.program import AttentionStage, OracleEngine
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.token_range import read_tokens, write_tokens
from twoheads.runtime.stages.stock.attention import CODE_SCORE, TRUSTED

__all__ = ["oracle_parameters", "run_oracle_attention"]

Array = npt.NDArray[Any]

SAMPLES = 16
"""Keys from which a query's synthetic score is estimated."""


@dataclass(frozen=True, slots=True)
class _Instance:
    """One head of one query block over the keys ``keys[column]`` (-1: hidden), seen as far as ``triangle`` says.

    ``triangle`` is ``None`` where every query sees every column.
    """

    row: MasklessRow
    head: int
    keys: npt.NDArray[np.int64]
    triangle: Triangle | None


def run_oracle_attention(run: RunState, stage: AttentionStage) -> None:
    """Computes the output of ``stage`` for all queries; it must be allocated, as its inputs are."""
    shared = _Shared(run, stage)
    rows = maskless_rows(stage.mask, shared.engine.block_size, shared.length)
    run.crew.run(rows, lambda: shared.estimate)
    instances = [instance for row in rows for instance in _instances(row, shared.engine)]
    run.crew.run(list(_calls(instances, shared.engine.slots)), lambda: _Worker(shared, repeat=False).call)
    doubtful = shared.doubtful()
    if doubtful:
        again = [instance for instance in instances if (instance.row.start, instance.head) in doubtful]
        shared.settle(again)
        run.crew.run(list(_calls(again, shared.engine.slots)), lambda: _Worker(shared, repeat=True).call)
    run.crew.run(rows, lambda: shared.finish)


def _instances(row: MasklessRow, engine: OracleEngine) -> Iterator[_Instance]:
    """A row's instances: one a triangle; one a chunk of full keys, or in a causal oracle its two halves (Claim B.6)."""
    size = engine.block_size
    pieces: list[tuple[npt.NDArray[np.int64], Triangle | None]] = []
    for triangle in row.triangles:
        keys = np.full(size, -1, np.int64)
        shown = triangle.columns(row.size)
        keys[: row.size][shown] = (triangle.start + np.arange(row.size))[shown]
        pieces.append((keys, triangle))
    lower, strict_upper = Triangle(0, False, (0, size)), Triangle(1, True, (0, size))
    for chunk in row.chunks(size):
        keys = np.full(size, -1, np.int64)
        found = _positions(chunk)
        keys[: len(found)] = found
        if engine.mask == "full":
            pieces.append((keys, None))
        else:
            pieces += [(keys, lower), (np.append(keys[1:], -1), strict_upper)]
    for head in range(engine.q_num_heads):
        for keys, part in pieces:
            yield _Instance(row, head, keys, part)


def _positions(intervals: Intervals) -> npt.NDArray[np.int64]:
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in intervals])


def _calls(instances: list[_Instance], slots: int) -> Iterator[list[_Instance]]:
    return (instances[at : at + slots] for at in range(0, len(instances), slots))


def oracle_parameters(engine: OracleEngine) -> list[Array]:
    """The parameters of all layers, in the order of the ports: selections of slices, and MLPs that do nothing.

    The model's scale is in ``w_q``; the synthetic coordinate and the codes are not scaled.
    """
    scale = np.ones(engine.query_dim, engine.dtype)
    scale[: engine.head_dim] = engine.scale
    arrays: list[Array] = []
    for layer in range(engine.layers):
        zeros = {port.name.split(".")[0]: np.zeros(port.shape, port.dtype) for port in engine.parameters(layer)}
        for head in range(engine.heads):
            query, key, value, out = _slices(engine, layer * engine.heads + head)
            zeros["w_q"][head, query] = np.diag(scale)
            zeros["w_k"][head, key] = np.eye(engine.query_dim)
            zeros["w_v"][head, value] = np.eye(engine.value_dim)
            zeros["w_o"][head * engine.value_dim : (head + 1) * engine.value_dim, out] = np.eye(engine.value_dim)
        arrays += zeros.values()
    return arrays


def _slices(engine: OracleEngine, slot: int) -> tuple[slice, slice, slice, slice]:
    """Where the query, the key, the value and the result of an instance lie in the embedding."""
    start = slot * engine.slice_dim
    key, value = start + engine.query_dim, start + 2 * engine.query_dim
    out = value + engine.value_dim
    return slice(start, key), slice(key, value), slice(value, out), slice(out, out + engine.value_dim)


class _Shared:
    """What the workers of one stage share: inputs, parameters, scores and sums, by token for all heads."""

    def __init__(self, run: RunState, stage: AttentionStage) -> None:
        engine = run.engines.declared(OracleEngine, stage.engine)
        assert engine is not None
        self.run, self.stage, self.engine = run, stage, engine
        stores = run.stores
        self.query, self.keys, self.values = (stores[name] for name in (stage.query, stage.key, stage.value))
        self.output = stores[stage.output.name]
        self.length = length = self.output.length
        self.parameters = [run.backend.tensor(array) for array in oracle_parameters(engine)]
        self.sinks = None if stage.sinks is None else run.engines.weights.view(stage.sinks).astype(np.float64)
        self.score = np.zeros((engine.q_num_heads, length), np.float32)
        self.weight = np.zeros((engine.q_num_heads, length))
        self.sums = np.zeros((engine.q_num_heads, length, engine.v_head_dim))
        self.unsure = np.zeros((engine.q_num_heads, length), np.bool_)
        self.lock = threading.Lock()

    def stop(self, row: MasklessRow) -> int:
        return min(row.start + row.size, self.length)

    def estimate(self, row: MasklessRow) -> None:
        """A guess at the log-sum-exps of a row's queries from a few of their keys."""
        shown = [_positions(row.full)] if row.full else []
        columns = np.arange(row.size)
        shown += [(triangle.start + columns)[triangle.columns(row.size)] for triangle in row.triangles]
        keys = np.concatenate(shown)
        sample = keys[:: max(1, len(keys) // SAMPLES)]
        scores = self._scores(row, sample).max(-1) + np.float32(np.log(len(keys)))
        self.score[:, row.start : self.stop(row)] = scores

    def _scores(self, row: MasklessRow, keys: npt.NDArray[np.int64]) -> Array:
        """Scores ``[heads, queries, keys]`` of a row's queries."""
        engine, stop = self.engine, self.stop(row)
        q = np.empty((engine.q_num_heads, stop - row.start, engine.head_dim), np.float32)
        k = np.empty((engine.kv_num_heads, len(keys), engine.head_dim), np.float32)
        read_tokens(self.query, row.start, stop, q)
        for column, key in enumerate(keys.tolist()):
            read_tokens(self.keys, key, key + 1, k[:, column : column + 1])
        products = q.reshape(engine.kv_num_heads, -1, engine.head_dim) @ k.swapaxes(1, 2)
        scores: Array = products.reshape(engine.q_num_heads, stop - row.start, len(keys)) * np.float32(engine.scale)
        return scores

    def doubtful(self) -> set[tuple[int, int]]:
        """Query blocks and heads with a query whose synthetic score was too far off; their sums are cleared."""
        unsure = self.unsure | (self.weight < TRUSTED[self.engine.dtype])
        found: set[tuple[int, int]] = set()
        if unsure.any():
            for row in maskless_rows(self.stage.mask, self.engine.block_size, self.length):
                here = slice(row.start, self.stop(row))
                for head in np.flatnonzero(unsure[:, here].any(-1)).tolist():
                    found.add((row.start, head))
                    self.weight[head, here], self.sums[head, here] = 0, 0
        return found

    def settle(self, instances: list[_Instance]) -> None:
        """Sets the scores of these instances' queries to the largest of all their keys, computed on the host."""
        for instance in instances:
            self.score[instance.head, instance.row.start : self.stop(instance.row)] = -np.inf
        for instance in instances:
            row, columns = instance.row, np.flatnonzero(instance.keys >= 0)
            if not len(columns):
                continue
            here = slice(row.start, self.stop(row))
            scores = self._scores(row, instance.keys[columns])[instance.head]
            if instance.triangle is not None:
                seen = _square(instance.triangle, self.engine.block_size)
                scores = np.where(seen[: len(scores), columns], scores, -np.inf)
            self.score[instance.head, here] = np.maximum(self.score[instance.head, here], scores.max(-1))

    def finish(self, row: MasklessRow) -> None:
        """Writes the output of a row."""
        here = slice(row.start, self.stop(row))
        weight = self.weight[:, here]
        if self.sinks is not None:
            weight = weight + np.exp(self.sinks[:, None] - self.score[:, here])
        out = self.sums[:, here] / np.where(weight > 0, weight, 1)[..., None]
        write_tokens(self.output, row.start, self.stop(row), out.astype(self.output.value.dtype))


def _square(triangle: Triangle, size: int) -> npt.NDArray[np.bool_]:
    """What queries see of an instance's columns, hidden ones apart."""
    a, b = np.arange(size)[:, None], np.arange(size)[None, :]
    seen = b >= a if triangle.upper else b <= a
    return seen & (a // triangle.sub_block == b // triangle.sub_block) if triangle.sub_block else seen


class _Worker:
    """One thread's embeddings and call."""

    def __init__(self, shared: _Shared, *, repeat: bool) -> None:
        engine, wrap = shared.engine, shared.run.backend.tensor
        self._shared, self._engine, self._repeat = shared, engine, repeat
        self._count = shared.run.counters[shared.stage.name].worker()
        x = np.zeros((1, 1 + engine.block_size, engine.embedding), engine.dtype)
        y = np.zeros_like(x)
        for slot in range(engine.slots):
            _, key, value, _ = _slices(engine, slot)
            x[0, 0, key][engine.head_dim] = 1  # the synthetic token
            x[0, 0, value][-1] = 1
        self._x, self._y = x[0, 1:], y[0, 1:]
        self._call = shared.run.engines.attention(shared.stage.engine, engine.mask).new_call()
        self._call.bind_input(0, wrap(x))
        for port, tensor in enumerate(shared.parameters, start=1):
            self._call.bind_input(port, tensor)
        self._call.bind_output(0, wrap(y))

    def call(self, instances: list[_Instance]) -> None:
        """One call; slots beyond the last instance keep what they held and are not read."""
        self._shared.run.crew.check()
        for slot, instance in enumerate(instances):
            self._pack(slot, instance)
        self._call.run()
        self._count.calls += 1
        self._count.repeats += self._repeat
        for slot, instance in enumerate(instances):
            self._unpack(slot, instance)

    def _order(self, instance: _Instance, columns: slice) -> tuple[slice, slice]:
        """Positions of an instance, reversed for an upper triangle, and a slice of the embedding."""
        turned = instance.triangle is not None and instance.triangle.upper
        return slice(None, None, -1 if turned else 1), columns

    def _pack(self, slot: int, instance: _Instance) -> None:
        engine, row = self._engine, instance.row
        stop = self._shared.stop(row)
        query, key, value, _ = _slices(engine, slot)
        q, k, v = (self._x[self._order(instance, part)] for part in (query, key, value))
        q[...], k[...], v[...] = 0, 0, 0
        head, group = instance.head, instance.head // (engine.q_num_heads // engine.kv_num_heads)
        read_tokens(
            self._shared.query, row.start, stop, q[None, : stop - row.start, : engine.head_dim], slice(head, head + 1)
        )
        q[: stop - row.start, engine.head_dim] = self._shared.score[instance.head, row.start : stop]
        shown = instance.keys >= 0
        for column, start, end in _runs(instance.keys):
            columns, heads = slice(column, column + end - start), slice(group, group + 1)
            read_tokens(self._shared.keys, start, end, k[None, columns, : engine.head_dim], heads)
            read_tokens(self._shared.values, start, end, v[None, columns, : engine.v_head_dim], heads)
        k[~shown, engine.head_dim] = 1
        v[shown, engine.v_head_dim] = 1
        if instance.triangle is not None and instance.triangle.sub_block:
            at = np.arange(row.size) // instance.triangle.sub_block
            words = code_words(engine.code_size, int(at[-1]) + 1)[at]
            q[: row.size, engine.head_dim + 1 :] = words * CODE_SCORE
            k[: row.size, engine.head_dim + 1 :] = np.where(words | ~shown[: row.size, None], 0, -1)

    def _unpack(self, slot: int, instance: _Instance) -> None:
        shared, row = self._shared, instance.row
        here = slice(row.start, shared.stop(row))
        result = self._y[self._order(instance, _slices(self._engine, slot)[3])]
        result = result[: here.stop - here.start].astype(np.float64)
        synthetic = result[:, -1:]
        unsure = synthetic[:, 0] < TRUSTED[self._engine.dtype]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(unsure[:, None], 0, result[:, :-1] / synthetic)
        with shared.lock:
            shared.sums[instance.head, here] += found[:, :-1]
            shared.weight[instance.head, here] += found[:, -1]
            shared.unsure[instance.head, here] |= unsure


def _runs(keys: npt.NDArray[np.int64]) -> Iterable[tuple[int, int, int]]:
    """Consecutive keys as ``(column, start, stop)``."""
    columns = np.flatnonzero(keys >= 0)
    if not len(columns):
        return
    breaks = np.flatnonzero((np.diff(columns) != 1) | (np.diff(keys[columns]) != 1)) + 1
    for part in np.split(columns, breaks):
        yield int(part[0]), int(keys[part[0]]), int(keys[part[-1]]) + 1
