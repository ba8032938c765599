"""What a run needs of the bundle that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.schedule.spill import SpillPlan
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.runtime.jobs.job import Job

__all__ = ["Progress", "RunContext"]

Progress = Callable[[int, int], None]
"""Called with the engine calls done so far and all of them, in the thread that called ``run``."""


class RunContext(Protocol):
    """A bundle as its runs see it; :class:`~twoheads.runtime.runs.session.LoadedBundle` is one."""

    threads: int
    memory_limit: int | None
    spill: Path | None
    process_bytes: int

    @property
    def program(self) -> Program:
        """The block program."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The bundle's table of contents."""
        ...

    def holds(self, engine: str, variant: str) -> bool:
        """Whether the bundle holds ``variant`` of an attention engine, for the backend that runs it."""
        ...

    def schedule(
        self,
        length: int | Mapping[str, int],
        output: str | None = None,
        positions: int | None = None,
        *,
        by_blocks: bool = False,
    ) -> Schedule:
        """What a run of one input does; ``by_blocks`` where no stages are fused."""
        ...

    def spill_plan(self, schedule: Schedule, job: Job | None = None) -> SpillPlan:
        """Which values a run of ``schedule`` keeps in files."""
        ...
