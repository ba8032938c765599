"""What the blocks of single stages take on a device, in seconds, from measured calls: a schedule in time."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.profile import DeviceProfile
from twoheads.graphs.program import (
    AttentionEngine,
    AttentionStage,
    SequenceStage,
    Stage,
    TokenwiseStage,
    Value,
    inputs_of,
)
from twoheads.graphs.program_lengths import is_cross, stage_axes
from twoheads.graphs.schedule import Schedule
from twoheads.graphs.stage_costs import attention_rows
from twoheads.graphs.tiles import Segment
from twoheads.graphs.variant_counts import anchor_tile, sums_up, variant_counts

__all__ = ["Seconds", "StageTimes", "makespan"]

Seconds = npt.NDArray[np.float64]


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
        attentions = [stage for stage in schedule.program.body if isinstance(stage, AttentionStage)]
        tiled = {name for stage in attentions for name in (stage.key, stage.value)}
        self._copied = {name for name in tiled if _is_scattered(self._values[name], schedule)}
        self._cache: dict[Hashable, Seconds] = {}

    def blocks(self, stage: Stage, callers: int) -> Seconds:
        """Seconds of every block of ``stage`` in one thread while ``callers`` threads compute; none of a host's stage.

        Raises:
            InputError: The profile lacks an engine, or does not cover sampled attention.
        """
        key = (self.kind(stage), callers)
        if key not in self._cache:
            self._cache[key] = self._blocks(stage, callers)
        return self._cache[key]

    def kind(self, stage: Stage) -> Hashable:
        """Equal for stages of equal times."""
        plan = self._plans[stage.name]
        if not isinstance(stage, AttentionStage):
            return plan.engine, plan.calls, stage_axes(stage, self._values)
        host = stage.average, stage.sinks is None, stage.bias is None
        return plan.engine, stage.mask, host, stage_axes(stage, self._values), is_cross(stage, self._values)

    def once(self, stage: Stage) -> float:
        """Seconds that ``stage`` takes beside its blocks, in one thread: to begin and end it, and the host's part."""
        seconds = self._profile.stage_seconds
        if isinstance(stage, SequenceStage):
            values = [self._values[name] for name in (*inputs_of(stage), stage.output.name)]
            moved = sum(value.nbytes(self._schedule.value_rows(value)) for value in values)
            return seconds + moved / self._profile.copy_bytes_per_second
        if isinstance(stage, AttentionStage) and stage.average is not None:
            keys = self._schedule.value_rows(self._values[stage.key])
            return seconds + keys * self._sampling()[0]
        return seconds

    def _blocks(self, stage: Stage, callers: int) -> Seconds:
        if isinstance(stage, AttentionStage):
            return self._attention(stage, callers)
        plan = self._plans[stage.name]
        if isinstance(stage, TokenwiseStage):
            seconds = self._profile.call_seconds(plan.engine, "", callers) + self._host_seconds(stage)
            return np.full(plan.calls, seconds)
        return np.zeros(0)

    def _host_seconds(self, stage: TokenwiseStage) -> float:
        """Of one block: taking it, and copying what lies scattered in its store."""
        values = [*(self._values[name] for name in stage.inputs), *stage.outputs]
        scattered = [value for value in values if value.name in self._copied]
        copied = sum(value.nbytes(self._schedule.program.block_size) for value in scattered)
        return self._profile.row_seconds + copied / self._profile.copy_bytes_per_second

    def _attention(self, stage: AttentionStage, callers: int) -> Seconds:
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
            draws = self._drawing_rows(stage, rows)
            drawn = stage.average.samples * self._profile.call_seconds(stage.engine, "full", callers)
            seconds += draws * (drawn + self._sampling()[1])
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

    def _sampling(self) -> tuple[float, float]:
        """Seconds of the host for a key and for a block that draws."""
        sampling = self._profile.sampling
        if sampling is None:
            raise InputError(
                f"device profile of {self._profile.model}",
                "has no times of sampled attention",
                "measure it where the model's attention can be sampled: twoheads profile BUNDLE -o PROFILE.json",
            )
        return sampling.key_seconds, sampling.row_seconds


def _tiles(row: tuple[Segment, ...]) -> int:
    return sum(segment.tiles for segment in row)


def _is_scattered(value: Value, schedule: Schedule) -> bool:
    """Whether a block of keys or values is no run of memory: of a tile that is wider, with several heads."""
    program = schedule.program
    return program.key_tile > program.block_size and prod(value.block_shape(1)[: value.token_axis]) > 1
