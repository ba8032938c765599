"""Which worker computes which rows of a schedule, so that every stage is balanced and little has to travel.

A row is one block of what a stage computes. All stages of an axis share one assignment of its blocks, so that hidden
states and queries stay where they are, and only keys and values (and what is moved as a whole) travel. Of two
assignments, the one with the lesser critical path is taken:

* *contiguous*: neighbours stay together, so that windows read from one neighbour only;
* *dealt*: in rounds of one row for each worker, the longest rows first, each round's longest to whoever has least.

In both, workers get equally many rows (to one), so that token-wise stages and memory are balanced too. Both are
deterministic, and neither knows of any transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import AttentionStage, Stage
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import Schedule, StagePlan, needed_stages

__all__ = ["DRIVER", "HOME", "Placement", "StagePlacement", "deal_rows", "place"]

DRIVER = -1
"""Whoever started the run: it gives the inputs and takes the output, and computes nothing."""

HOME = 0
"""The worker that computes what is computed once: sequence stages, scans and row values."""

CONTIGUOUS_SLACK = 1.05
"""How much longer the critical path may be for neighbours to stay together."""

Owners = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class StagePlacement:
    """One stage on ``W`` workers.

    Attributes:
        name, kind, engine: As in the schedule's :class:`~twoheads.graphs.schedule.schedule.StagePlan`.
        owner: The worker of every row, ``[rows]``.
        calls: Engine calls of every worker, ``[W]``. (Of an oracle, whose calls serve several rows, rounded.)
        cost: Their cost, ``[W]``.
        read_bytes: What every worker reads that another one, or the driver, holds, ``[W]``; whole blocks. Of a head
            that runs on picked rows, all that it reads, as it is not known here which rows those are.
        written_bytes: What every worker holds of the values that the stage defines, ``[W]``; whole blocks.
    """

    name: str
    kind: str
    engine: str
    owner: Owners
    calls: Counts
    cost: Costs
    read_bytes: Counts
    written_bytes: Counts

    @property
    def critical_cost(self) -> float:
        """The cost of the worker that has most to do."""
        return float(self.cost.max())


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """All stages of a schedule on a number of workers.

    Attributes:
        schedule: What is placed.
        workers: How many workers, ``W``.
        owners: For every axis, the worker of each of its blocks.
        costs: For every axis, what all stages together cost for each of its blocks.
        stages: In the order of the schedule.
    """

    schedule: Schedule
    workers: int
    owners: dict[str, Owners]
    costs: dict[str, Costs]
    stages: tuple[StagePlacement, ...]

    @property
    def total_cost(self) -> float:
        """The cost of all calls."""
        return float(sum(stage.cost.sum() for stage in self.stages))

    @property
    def critical_cost(self) -> float:
        """The cost of the critical path: of each stage, that of the worker with most to do; stages follow another."""
        return sum(stage.critical_cost for stage in self.stages)

    @property
    def efficiency(self) -> float:
        """The share of the workers' time that is computed in, if nothing took time but calls; 1 at best."""
        critical = self.critical_cost
        return self.total_cost / (self.workers * critical) if critical else 1.0

    @property
    def moved_bytes(self) -> int:
        """Bytes that are read by a worker which did not write them."""
        return int(sum(stage.read_bytes.sum() for stage in self.stages))

    def stage(self, name: str) -> StagePlacement:
        """The stage called ``name``."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InternalError(f"no stage {name!r} is placed")


def deal_rows(costs: Costs, workers: int) -> Owners:
    """The worker of each of the rows of ``costs``, dealt in rounds, the longest rows first."""
    owner = np.zeros(len(costs), np.int64)
    load = np.zeros(workers)
    order = np.argsort(-costs, kind="stable")
    for start in range(0, len(costs), workers):
        rows = order[start : start + workers]
        takers = np.argsort(load, kind="stable")[: len(rows)]
        owner[rows] = takers
        load[takers] += costs[rows]
    return owner


def place(schedule: Schedule, workers: int, costs: Mapping[str, float] | None = None) -> Placement:
    """Assigns the rows of every stage of ``schedule`` to ``workers``.

    Args:
        schedule: What is to run.
        workers: How many workers, 1 or more.
        costs: The cost of one call by engine name, e.g. measured seconds; of engines that are not named, and of all if
            ``None``, the floating-point operations.

    Raises:
        InputError: There are no workers.
    """
    if workers < 1:
        raise InputError("workers", f"is {workers}", "give 1 or more")
    return _Placing(schedule, workers, costs or {}).placement()


class _Placing:
    """Costs of rows, and what moves, for one schedule and number of workers."""

    def __init__(self, schedule: Schedule, workers: int, costs: Mapping[str, float]) -> None:
        self._schedule = schedule
        self._workers = workers
        self._costs = costs
        self._reads = StageReads(schedule)
        self._plans = {plan.name: plan for plan in schedule.stages}
        self._body, self._head = needed_stages(schedule.program, schedule.output)
        self._row_calls: dict[str, Costs] = {}
        self._read_cache: dict[str, Counts] = {}
        self._writer: dict[str, Owners] = {
            entry.value.name: np.full(self._reads.blocks(entry.value.name), DRIVER) for entry in schedule.program.inputs
        }

    def placement(self) -> Placement:
        groups = self._groups()
        owners = {axis: self._better(costs) for axis, costs in groups.items()}
        stages = [self._place_body(stage, owners) for stage in self._body]
        stages += [self._place_head(self._plans[stage.name]) for stage in self._head]
        total = {axis: np.sum(costs, axis=0) for axis, costs in groups.items()}
        return Placement(self._schedule, self._workers, owners, total, tuple(stages))

    def _groups(self) -> dict[str, list[Costs]]:
        """For every axis, the costs of its blocks in each stage that is computed along it."""
        groups: dict[str, list[Costs]] = {}
        for stage in self._body:
            axis = self._axis(stage)
            if axis is not None:
                groups.setdefault(axis, []).append(self._calls(stage) * self._call_cost(self._plans[stage.name]))
        return groups

    def _better(self, stages: list[Costs]) -> Owners:
        """The better of the two assignments."""
        total = np.sum(stages, axis=0)
        neighbours = _contiguous(len(total), self._workers)
        dealt = deal_rows(total, self._workers)
        critical = [sum(self._load(owner, cost).max() for cost in stages) for owner in (neighbours, dealt)]
        return neighbours if critical[0] <= critical[1] * CONTIGUOUS_SLACK else dealt

    def _axis(self, stage: Stage) -> str | None:
        """The axis along which the rows of ``stage`` are dealt; ``None`` where it is computed at once, by ``HOME``."""
        axis, _ = stage.axes(self._reads.values)
        return None if stage.at_once else axis

    def _calls(self, stage: Stage) -> Costs:
        """Engine calls of every row of ``stage``."""
        rows = self._reads.rows(stage)
        if stage.at_once:
            return np.full(rows, float(self._plans[stage.name].calls))
        if not isinstance(stage, AttentionStage):
            return np.ones(rows)
        key = f"{stage.engine} {stage.mask} {stage.average} {stage.axes(self._reads.values)}"
        if key not in self._row_calls:
            calls = tiles = self._tiles(stage)
            if stage.average is not None:  # rows that leave tiles out draw keys
                calls = tiles + stage.average.samples * (tiles < self._tiles(replace(stage, average=None)))
            self._row_calls[key] = _scaled(calls, self._plans[stage.name].calls)
        return self._row_calls[key]

    def _tiles(self, stage: AttentionStage) -> Costs:
        rows = self._schedule.rows(stage)
        return np.array([sum(segment.tiles for segment in segments) for _, segments in rows], np.float64)

    def _call_cost(self, plan: StagePlan) -> float:
        given = self._costs.get(plan.engine)
        return plan.flops / plan.calls if given is None and plan.calls else given or 0.0

    def _load(self, owner: Owners, costs: Costs) -> Costs:
        return np.bincount(owner, weights=costs, minlength=self._workers).astype(np.float64, copy=False)

    def _place_body(self, stage: Stage, owners: Mapping[str, Owners]) -> StagePlacement:
        axis = self._axis(stage)
        owner = np.full(self._reads.rows(stage), HOME) if axis is None else owners[axis]
        read = self._read_bytes(stage, owner)
        written = np.zeros(self._workers, np.int64)
        for value in stage.outputs:
            blocks = self._reads.blocks(value.name)
            writer = owner if len(owner) == blocks else np.full(blocks, HOME)
            self._writer[value.name] = writer
            written += np.bincount(writer, minlength=self._workers) * value.nbytes(self._schedule.program.block_size)
        return self._placed(self._plans[stage.name], owner, self._calls(stage), read, written)

    def _placed(self, plan: StagePlan, owner: Owners, calls: Costs, read: Counts, written: Counts) -> StagePlacement:
        load = self._load(owner, calls)
        whole = np.rint(load).astype(np.int64)
        return StagePlacement(
            plan.name, plan.kind, plan.engine, owner, whole, load * self._call_cost(plan), read, written
        )

    def _read_bytes(self, stage: Stage, owner: Owners) -> Counts:
        """What every worker reads that it did not write."""
        total = np.zeros(self._workers, np.int64)
        for name in dict.fromkeys(stage.inputs):
            writer, value = self._writer[name], self._reads.values[name]
            if isinstance(stage, AttentionStage) and name in stage.tiled:
                foreign = self._foreign_keys(stage, name, owner)
            elif stage.at_once:
                foreign = np.bincount([HOME], minlength=self._workers) * np.count_nonzero(writer != HOME)
            elif value.axis is None:
                foreign = np.bincount(np.unique(owner[owner != writer[0]]), minlength=self._workers)
            else:
                foreign = np.bincount(owner[owner != writer], minlength=self._workers)
            total += foreign * value.nbytes(self._schedule.program.block_size)
        return total

    def _foreign_keys(self, stage: AttentionStage, name: str, owner: Owners) -> Counts:
        """Blocks of the keys or values ``name`` that every worker reads and did not write."""
        writer = self._writer[name]
        key = f"{stage.mask} {stage.axes(self._reads.values)} {id(writer)} {id(owner)}"
        if key not in self._read_cache:
            foreign = np.zeros(self._workers, np.int64)
            for worker in np.unique(owner):
                blocks = self._reads.of(stage, np.flatnonzero(owner == worker))[name]
                foreign[worker] = np.count_nonzero(writer[blocks] != worker)
            self._read_cache[key] = foreign
        return self._read_cache[key]

    def _place_head(self, plan: StagePlan) -> StagePlacement:
        """The head of all rows stays with the hidden states, that of picked rows is spread evenly."""
        program = self._schedule.program
        hidden, blocks = self._writer[program.hidden], -(-self._schedule.positions // program.block_size)
        rows = self._schedule.value_rows(self._reads.values[program.hidden])
        every, last = self._schedule.positions == rows, self._schedule.output == "last"
        owner = hidden if every else hidden[-1:] if last else _contiguous(blocks, self._workers)
        none = np.zeros(self._workers, np.int64)
        picked = np.bincount(owner, minlength=self._workers) * self._reads.values[program.hidden].nbytes(
            program.block_size
        )
        first = plan.name == self._head[0].name
        read = none if every or last or self._workers == 1 or not first else picked
        written = np.bincount(owner, minlength=self._workers) * (plan.outputs_bytes // blocks)
        return self._placed(plan, owner, np.ones(blocks), read, written)


def _contiguous(rows: int, workers: int) -> Owners:
    """The worker of each row, in runs of neighbours of equal length."""
    return np.arange(rows, dtype=np.int64) * min(workers, rows) // max(rows, 1)


def _scaled(calls: Costs, total: int) -> Costs:
    """``calls`` in proportion, so that their sum is ``total``: of engines whose rows are not tiles."""
    found = calls.sum()
    return calls if found == total or not found else calls * (total / found)
