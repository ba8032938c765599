"""What the blocks of single stages take on a device, in seconds, from measured calls: a schedule in time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.costs.attention_costs import attention_rows
from twoheads.graphs.costs.expert_costs import even_calls
from twoheads.graphs.costs.variant_counts import anchor_tile, sums_up, variant_counts
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.tiles import Segment
from twoheads.graphs.prediction.device_profile import ALONE, DeviceProfile, Sampling
from twoheads.graphs.program.engines.experts import rows_variant
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    ExpertsEngine,
    ExpertsStage,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.schedule.schedule import Schedule

__all__ = ["Seconds", "StageTimes", "WorkerSeconds", "makespan"]

FLOAT = 4
"""Bytes of a number."""

Seconds = npt.NDArray[np.float64]
Owners = npt.NDArray[np.int64]


def makespan(seconds: Seconds, threads: int) -> float:
    """Seconds until ``threads`` workers have taken all items from a queue, the longest first: the crew's rule."""
    if not len(seconds):
        return 0.0
    if seconds[0] == seconds.min() == seconds.max():
        return float(seconds[0]) * -(-len(seconds) // threads)
    loads = [0.0] * threads
    for item in sorted(seconds.tolist(), reverse=True):
        heapq.heapreplace(loads, loads[0] + item)
    return max(loads)


@dataclass(frozen=True, slots=True, eq=False)
class WorkerSeconds:
    """One stage on several machines, ``[workers]`` each.

    Attributes:
        until: Seconds until a worker has finished its blocks.
        work: What it computed, spread over all of its threads; no more than ``until``.
    """

    until: Seconds
    work: Seconds


class StageTimes:
    """Seconds of the blocks of each stage of one schedule.

    Args:
        schedule: What is to run.
        profile: Of the device, for the schedule's engines.
    """

    def __init__(self, schedule: Schedule, profile: DeviceProfile) -> None:
        self._schedule = schedule
        self._profile = profile
        self._values = {value.name: value for value in schedule.program.values()}
        self._plans = {plan.name: plan for plan in schedule.stages}
        self._copied = {name for name in schedule.program.tiled if _is_scattered(self._values[name], schedule)}
        self._one_block = any(plan.kind == "model" for plan in schedule.stages)
        self.variant = ALONE if self._one_block else ""
        """That of token-wise engines."""
        self._cache: dict[Hashable, Seconds] = {}

    def blocks(self, stage: Stage, callers: int) -> Seconds:
        """Seconds of every block of ``stage`` in one thread while ``callers`` threads compute; none of a host's stage.

        Raises:
            InputError: The profile lacks an engine, or does not cover sampled attention.
        """
        key = (self.kind(stage), callers)
        if key not in self._cache:
            self._cache[key] = _KINDS.of(stage).blocks(self, stage, callers)
        return self._cache[key]

    def of_workers(self, stage: Stage, owner: Owners, workers: int, threads: int) -> WorkerSeconds:
        """Seconds of every one of ``workers`` machines for its blocks of ``stage``.

        Args:
            stage: Any stage of the schedule.
            owner: The worker of every block.
            workers: How many there are.
            threads: Of each.
        """
        busy, until = np.zeros(workers), np.zeros(workers)
        counts = np.bincount(owner, minlength=workers)
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(counts)
        if self._one_block or stage.alone:  # one call after the other, each by all threads
            together = counts * self.blocks(stage, threads)[:1].sum()
            return WorkerSeconds(together, together)
        for callers in np.unique(np.minimum(counts[counts > 0], threads)).tolist():
            seconds = self.blocks(stage, callers)
            if not len(seconds):
                continue
            like = np.flatnonzero(np.minimum(counts, threads) == callers)
            if seconds.min() == seconds.max():
                until[like] = -(-counts[like] // threads) * seconds[0]
                busy[like] = counts[like] * seconds[0]
                continue
            for worker in like.tolist():
                mine = seconds[order[ends[worker] - counts[worker] : ends[worker]]]
                until[worker], busy[worker] = makespan(mine, threads), mine.sum()
        return WorkerSeconds(until, busy / threads)

    def kind(self, stage: Stage) -> Hashable:
        """Equal for stages of equal times."""
        plan, axes = self._plans[stage.name], stage.axes(self._values)
        if not isinstance(stage, AttentionStage):
            return plan.engine, plan.calls, axes
        return plan.engine, stage.mask, stage.average, stage.sinks is None, stage.bias is None, axes

    def once(self, stage: Stage) -> float:
        """Seconds that ``stage`` takes beside its blocks, in one thread: to begin and end it, and the host's part."""
        return self._profile.stage_seconds + _KINDS.of(stage).host(self, stage)

    def moved_seconds(self, stage: SequenceStage) -> float:
        """Of the host, which copies rows."""
        moved = sum(value.nbytes(self._schedule.value_rows(value)) for value in self._touched(stage))
        return moved / self._profile.copy_bytes_per_second

    def drawn_seconds(self, stage: AttentionStage) -> float:
        """Of the host, which copies keys in a random order where they are sampled."""
        if stage.average is None:
            return 0.0
        return self._schedule.value_rows(self._values[stage.key]) * self._sampling().key_seconds

    def call_seconds(self, stage: TokenwiseStage, callers: int) -> Seconds:
        """Of every block: the call and what the host does for it."""
        plan = self._plans[stage.name]
        seconds = self._profile.call_seconds(plan.engine, self.variant, callers) + self._host_seconds(stage)
        return np.full(plan.calls, seconds)

    def columns_seconds(self, stage: ColumnsStage, callers: int) -> Seconds:
        """Of every piece of columns its part of a call of all; the kernels of one share the threads."""
        calls, parts = self._plans[stage.name].calls, callers * len(stage.starts)
        return np.full(calls, self._profile.call_seconds(stage.whole, self.variant, callers) / parts)

    def scan_seconds(self, stage: ScanStage, callers: int) -> Seconds:
        """Of every block of a chain, called by one thread."""
        plan = self._plans[stage.name]
        return np.full(plan.calls, self._profile.call_seconds(plan.engine, "block", 1) + self._host_seconds(stage))

    def experts_seconds(self, stage: ExpertsStage, callers: int) -> Seconds:
        """Of every block its part of all calls, made by one thread, where tokens choose experts evenly."""
        engine = self._schedule.program.engine_of(ExpertsEngine, stage.engine)
        rows = self._schedule.value_rows(stage.output)
        copied = 3 * rows * engine.chosen * engine.width * FLOAT / self._profile.copy_bytes_per_second
        calls = even_calls(engine, rows)
        together = copied + sum(self._profile.call_seconds(engine.name, rows_variant(size), 1) for size in calls)
        blocks = -(-rows // self._schedule.program.block_size)
        return np.full(blocks, together / blocks + self._profile.row_seconds)

    def _touched(self, stage: Stage) -> list[Value]:
        return [*(self._values[name] for name in stage.inputs), *stage.outputs]

    def _host_seconds(self, stage: Stage) -> float:
        """Of one block: taking it, and copying what lies scattered in its store."""
        scattered = [value for value in self._touched(stage) if value.name in self._copied]
        copied = sum(value.nbytes(self._schedule.program.block_size) for value in scattered)
        return self._profile.row_seconds + copied / self._profile.copy_bytes_per_second

    def row_seconds(self, stage: AttentionStage, callers: int) -> Seconds:
        """Of every row of an attention: its tiles, and what the host does beside."""
        rows = [row for _, row in self._schedule.rows(stage)]
        engine = self._schedule.program.engine(stage.engine)
        if not isinstance(engine, AttentionEngine):
            raise InputError(engine.name, "is no engine whose time is predicted", "compile with --lowering tile")
        adds = sums_up(stage, engine, self._profile.variants(engine.name).__contains__)
        seconds = np.full(len(rows), self._profile.row_seconds)
        for variant, counts in variant_counts(stage, rows, adds=adds).items():
            seconds += counts * self._profile.call_seconds(engine.name, variant, callers)
        if adds:
            seconds += np.array([anchor_tile(row) is not None for row in rows]) * self._add_seconds(engine)
        if stage.average is not None:
            sampling = self._sampling()
            tile = self._profile.call_seconds(stage.engine, "full", callers) + sampling.tile_seconds
            seconds += self._drawing_rows(stage, rows) * (sampling.row_seconds + stage.average.samples * tile)
        return seconds

    def _add_seconds(self, engine: AttentionEngine) -> float:
        """Of a row whose tiles are added up: copying its queries, and dividing its sums."""
        inputs, outputs = engine.ports("full_add")
        return 2 * (inputs[0].nbytes + outputs[0].nbytes) / self._profile.copy_bytes_per_second

    def _drawing_rows(self, stage: AttentionStage, rows: list[tuple[Segment, ...]]) -> npt.NDArray[np.bool_]:
        """Which rows draw keys: those that leave tiles out."""
        program = self._schedule.program
        length = self._schedule.value_rows(stage.output)
        sizes = {"block_size": program.block_size, "key_tile": program.key_tile}
        every = attention_rows(replace(stage, average=None), **sizes, queries=length, keys=length, cross=False)
        return np.array([_tiles(row) < _tiles(whole) for row, whole in zip(rows, every, strict=True)])

    def _sampling(self) -> Sampling:
        """What the host takes where attention is sampled."""
        if self._profile.sampling is None:
            raise InputError(
                f"device profile of {self._profile.model}",
                "has no times of sampled attention, because no attention of that bundle can be sampled",
                "leave average out of the policy",
            )
        return self._profile.sampling


def _tiles(row: tuple[Segment, ...]) -> int:
    return sum(segment.tiles for segment in row)


def _is_scattered(value: Value, schedule: Schedule) -> bool:
    """Whether a block of keys or values is no run of memory: of a tile that is wider, with several heads."""
    program = schedule.program
    return program.key_tile > program.block_size and prod(value.block_shape(1)[: value.token_axis]) > 1


@dataclass(frozen=True, slots=True)
class _Kind:
    """How long one kind of stage takes: its blocks in one of several threads, and beside them the host."""

    blocks: Callable[[StageTimes, Any, int], Seconds]
    host: Callable[[StageTimes, Any], float]


_KINDS = ByKind(
    "prediction",
    {
        TokenwiseStage: _Kind(StageTimes.call_seconds, lambda times, stage: 0.0),
        ColumnsStage: _Kind(StageTimes.columns_seconds, lambda times, stage: 0.0),
        AttentionStage: _Kind(StageTimes.row_seconds, StageTimes.drawn_seconds),
        ScanStage: _Kind(StageTimes.scan_seconds, lambda times, stage: 0.0),
        ExpertsStage: _Kind(StageTimes.experts_seconds, lambda times, stage: 0.0),
        SequenceStage: _Kind(lambda times, stage, callers: np.zeros(0), StageTimes.moved_seconds),
    },
)
