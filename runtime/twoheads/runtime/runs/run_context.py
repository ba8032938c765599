"""What a run needs of the bundle that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twoheads.graphs.program.lengths import resolve_lengths
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.head_columns import limited_schedule
from twoheads.graphs.schedule.schedule import Schedule, make_schedule
from twoheads.graphs.schedule.spill import SpillPlan, plan_spill
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.graphs.variants.choose import FusedPrograms
from twoheads.runtime.backends.protocol import EngineHandle
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.execution.engine_pool import EngineKey, EnginePool
from twoheads.runtime.execution.executor import Executor
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.disk_space import check_room

__all__ = ["Progress", "RunContext"]

Progress = Callable[[int, int], None]
"""Called with the engine calls done so far and all of them, in the thread that called ``run``."""


class RunContext:
    """A bundle as its runs see it; :class:`~twoheads.runtime.runs.session.LoadedBundle` is one and says more."""

    threads: int
    memory_limit: int | None
    spill: Path | None
    process_bytes: int
    executor: Executor
    fused: bool
    _bundle: Bundle
    _engines: EnginePool
    _fused: FusedPrograms
    _columns: Program | None
    _latest: tuple[Any, Schedule] | None = None

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def identity(self) -> str:
        """The hex sha256 of the bundle's manifest."""
        return self._bundle.identity

    def open_weights(self) -> Weights:
        """Every weight, mapped; what was not checked yet is checked when it is read first."""
        return self._bundle.open_weights()

    @property
    def program(self) -> Program:
        """The block program."""
        return self._bundle.program

    @property
    def columns(self) -> Program | None:
        """The program with its head in pieces of columns, where the bundle has engines for it and this backend."""
        return self._columns

    @property
    def manifest(self) -> Manifest:
        """The bundle's table of contents."""
        return self._bundle.manifest

    def schedule(
        self,
        length: int | Mapping[str, int],
        output: str | None = None,
        positions: int | None = None,
        *,
        by_blocks: bool = False,
    ) -> Schedule:
        """What a run of ``length`` tokens will do: calls, operations, bytes, memory; nothing is run.

        An input of at most one block is one call (and its head), and a windowed layer of a longer one is one call a
        block, or all layers together are, if the bundle has the engines. Under a memory limit, with values in files, in
        a job and on a cluster every stage is computed by itself; the head is in pieces of columns where the limit has
        no room for it as a whole.

        Args:
            length: Tokens of the input; by axis where inputs have several lengths, ``{"n": 1000, "m": 300}``.
            output: ``hidden``, ``logits``, ``last`` or ``embedding``; ``None`` for the program's default.
            positions: Rows of logits; ``None`` for all.
            by_blocks: Of a run in a job or on a cluster.

        Raises:
            InputError: The model can't take that length or does not give that output.
        """
        lengths = resolve_lengths(self.program, length)
        disk = by_blocks or self.spill is not None
        by_blocks |= not self.fused or self.memory_limit is not None or self.spill is not None
        program = self.program if by_blocks else self._fused.chosen(lengths)
        asked = (id(program), lengths, output or program.default_output, positions, disk)
        if self._latest is None or self._latest[0] != asked:  # who asks before a run asks for that of the run
            workers, process = self.threads, self.process_bytes

            def make(chosen: Program) -> Schedule:
                return make_schedule(
                    chosen, lengths, output=output, positions=positions, workers=workers, process=process
                )

            limit = self.memory_limit
            made = limited_schedule(program, self._columns, make, limit=limit, disk=disk, workers=workers)
            self._latest = (asked, made)
        return self._latest[1]

    def holds(self, engine: str, variant: str) -> bool:
        """Whether the bundle holds ``variant`` of an attention engine, for this backend."""
        return self._engines.holds(engine, variant)

    @property
    def opened(self) -> Mapping[EngineKey, EngineHandle]:
        """The engines of blocks that are open."""
        return self._engines.opened

    def spill_plan(self, schedule: Schedule, job: Job | None = None, held: int | None = None) -> SpillPlan:
        """Which values a run of ``schedule`` keeps in files, and what it then takes of memory and disk.

        A ``job`` has files of all values; those that are not spilled count as memory as well. On a cluster a worker
        has at most ``held`` bytes of values, and none in files.

        Raises:
            InputError: It does not fit into the memory limit.
            TwoheadsError: The spill folder's disk has too little room.
        """
        disk = self.spill is not None or job is not None
        plan = plan_spill(schedule, limit=self.memory_limit, disk=disk, workers=self.threads, held=held)
        if job is not None and not job.resumed:
            check_room(job.folder, schedule.memory.values, "the values of the run take up to")
        elif job is None and self.spill is not None:
            check_room(self.spill, plan.disk_bytes, "the run spills up to")
        return plan
