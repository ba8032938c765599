"""Runs the body of a schedule on workers: stage after stage, what was lost is computed again.

What is kept, and for how long, bounds what has to be computed again. After each attention and scan (and after the last)
every value that later stages read is *settled*: a second worker keeps a copy of each of its blocks. Only then are the
values before it let go. So whichever worker is lost, its blocks since the last settling can be computed from blocks
that others hold. If both holders of a block are lost, the run starts over with the workers that are left.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.placement import DRIVER
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.cluster.tasks import Dispatch, Sent
from twoheads.runtime.cluster.transport import RowsTask, RunTask
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["BodyRun"]


class _StartOver(Exception):  # noqa: N818 - not an error, a request
    """What was lost can't be computed from what is left."""


class BodyRun:
    """The body of one run.

    ``rounds`` are those of the last time that all stages were computed, ``seconds`` the time of each stage, all told.

    Args:
        schedule: The run.
        task: The same for the workers.
        dispatch: Its calls.
        reads: What rows read.
    """

    def __init__(self, schedule: Schedule, task: RunTask, dispatch: Dispatch, reads: StageReads) -> None:
        self.rounds = 0
        self.seconds: dict[str, float] = {}
        self._schedule = schedule
        self._task = task
        self._dispatch = dispatch
        self._reads = reads
        self._inputs: Mapping[str, npt.NDArray[Any]] = {}
        self._stages, _ = needed_stages(schedule.program, schedule.output)
        self._producers: dict[str, Stage] = {value.name: stage for stage in self._stages for value in stage.outputs}
        self._dying: set[str] = set()

    def open_engines(self) -> None:
        """Has all workers open what the run needs."""
        dispatch = self._dispatch
        self._collect(dict(dispatch.send(worker, {}, "open", self._task) for worker in sorted(dispatch.alive)))

    def hold(self, name: str, blocks: Iterable[int]) -> None:
        """Returns when every one of ``blocks`` of a value that the body defines for later is held by some worker."""
        wanted = list(blocks)
        while lost := self._dispatch.ledger.lost(name, wanted):
            try:
                self._restore(name, lost)
            except _StartOver:
                self.compute(self._inputs)

    def compute(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Computes all stages; afterwards the values that the output is made of are held.

        ``inputs`` are an array for every input value.
        """
        self._inputs = inputs
        while True:
            try:
                self._compute_stages()
            except _StartOver:
                continue
            return

    def _compute_stages(self) -> None:
        self.rounds = 0
        self._dying.clear()
        self._dispatch.ledger.release(self._dispatch.ledger.values)
        self._put_inputs()
        for stage in self._stages:
            released = self._schedule.release_after.get(stage.name, ())
            began = time.perf_counter()
            own = tuple(value.name for value in stage.outputs if value.name not in released)
            self._ensure(stage, range(self._reads.rows(stage)), own)
            self.rounds += self._reads.blocks(stage.outputs[0].name) if stage.chained else not stage.on_host
            self._dying.update(released)
            if stage.mixes or stage is self._stages[-1]:
                self._settle()
            self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + time.perf_counter() - began

    def _put_inputs(self) -> None:
        program = self._schedule.program
        for entry in program.inputs:
            rows = self._schedule.value_rows(entry.value)
            store = ValueStore(entry.value, length=rows, block_size=program.block_size, tile=program.block_size)
            store.fill(self._inputs[entry.value.name])
            for block in range(self._reads.blocks(entry.value.name)):
                self._dispatch.ledger.add(entry.value.name, block, DRIVER, self._dispatch.put(store.block(block)))

    def _ensure(self, stage: Stage, rows: Iterable[int], names: tuple[str, ...]) -> None:
        """Computes those of ``rows`` of which a block of the values ``names`` is held by nobody."""
        wanted = list(rows)
        while missing := [row for row in wanted if not all(self._is_held(stage, name, row) for name in names)]:
            reads = self._reads.of(stage, missing)
            lost = {name: self._dispatch.ledger.lost(name, map(int, blocks)) for name, blocks in reads.items()}
            for name, blocks in lost.items():
                if blocks:
                    self._restore(name, blocks)
            if not any(lost.values()):  # restoring may have lost others: look again
                self._compute_rows(stage, missing, names)

    def _is_held(self, stage: Stage, name: str, row: int) -> bool:
        blocks = [row] if self._axis(stage) is not None else range(self._reads.blocks(name))
        return not self._dispatch.ledger.lost(name, blocks)

    def _restore(self, name: str, blocks: Iterable[int]) -> None:
        """Computes blocks of an earlier value again.

        Raises:
            _StartOver: What they are made of was let go.
        """
        stage = self._producers.get(name)
        if stage is None or name not in self._dispatch.ledger.values:
            raise _StartOver
        self._ensure(stage, blocks if self._axis(stage) is not None else (0,), (name,))

    def _axis(self, stage: Stage) -> str | None:
        """The axis whose blocks are the stage's rows; ``None`` where it is computed at once."""
        return None if stage.at_once else stage.axes(self._reads.values)[0]

    def _compute_rows(self, stage: Stage, rows: list[int], names: tuple[str, ...]) -> None:
        """Has the rows computed, each by its owner; some may be lost in the course of it."""
        axis, dispatch = self._axis(stage), self._dispatch
        dealt: dict[int, list[int]] = {}
        for row in rows:
            dealt.setdefault(dispatch.owner(axis, row), []).append(row)
        flying: dict[Any, Sent] = {}
        for worker, own in dealt.items():
            blocks, holders = dispatch.references(worker, self._reads.of(stage, own))
            task = RowsTask(self._task, stage.name, None if stage.at_once else tuple(own), names, blocks)
            handle, sent = dispatch.send(worker, holders, "compute", task)
            flying[handle] = sent
        self._collect(flying)

    def _collect(self, flying: dict[Any, Sent], *, copies: bool = False) -> None:
        """Takes the results of all calls; ``copies`` are noted beside the copies that are known."""
        ledger = self._dispatch.ledger
        while flying:
            sent, result = self._dispatch.collect(flying)
            if result is not None and sent.worker in self._dispatch.alive:
                for name, blocks in result.blocks.items():
                    for block, piece in blocks.items():
                        if copies or not ledger.holds(name, block):
                            ledger.add(name, block, sent.worker, piece)

    def _settle(self) -> None:
        """Gives every block that is still needed a second holder, then lets go of what is not."""
        dispatch = self._dispatch
        names = [name for name in self._producers if name in dispatch.ledger.values - self._dying]
        while True:
            for name in names:
                if lost := dispatch.ledger.lost(name, range(self._reads.blocks(name))):
                    self._restore(name, lost)
                    break
            else:
                single = dispatch.ledger.only_holders(names) if len(dispatch.alive) > 1 else {}
                if not single:
                    break
                self._copy(single)
        dispatch.ledger.release(self._dying)
        self._dying.clear()

    def _copy(self, single: Mapping[tuple[str, int], int]) -> None:
        """Has the next living worker copy what one alone holds."""
        dispatch = self._dispatch
        living = sorted(dispatch.alive)
        reads: dict[int, dict[str, list[int]]] = {}
        for (name, block), holder in single.items():
            target = next((worker for worker in living if worker > holder), living[0])
            reads.setdefault(target, {}).setdefault(name, []).append(block)
        flying: dict[Any, Sent] = {}
        for worker, wanted in reads.items():
            blocks, holders = dispatch.references(worker, wanted)
            handle, sent = dispatch.send(worker, holders, "copy", blocks)
            flying[handle] = sent
        self._collect(flying, copies=True)
