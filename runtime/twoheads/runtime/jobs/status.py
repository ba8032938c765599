"""How far a job is, for whoever looks at its folder from outside, while it runs or after it was stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.jobs.contents import FIX, JobContent, RunJournal, read_as
from twoheads.runtime.jobs.job import JOB, JOURNAL, LOCK, PROGRESS, VALUES, Job, lock, read_checked, refuse_links
from twoheads.runtime.memory.mapped_file import value_file

__all__ = ["JobStatus", "read_status"]

TOLD = {"calls", "total", "began", "seconds", "updated"}
"""What every process tells of its progress."""

MOST = 1e15
"""No number of calls, and no time, is larger."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a job's folder says.

    Attributes:
        state: ``running``, ``stopped``, ``finished`` or ``damaged``.
        identity: What is computed.
        request: How it was asked for, where the command line did; else empty.
        progress: Engine calls by the last process, see :meth:`~twoheads.runtime.jobs.job.Job.tell`; empty where
        unknown. stages: Those that the last checkpoint holds.
        part: The stage of which it holds a part, or ``None``.
        calls: Engine calls whose results it holds; ``None`` where it is no checkpoint of a single run.
        problem: What is damaged.
    """

    state: str
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    request: dict[str, Any] = field(default_factory=dict[str, Any])
    progress: dict[str, Any] = field(default_factory=dict[str, Any])
    stages: tuple[str, ...] = ()
    part: str | None = None
    calls: int | None = None
    problem: TwoheadsError | None = None


def read_status(folder: Path) -> JobStatus:
    """Reads the folder, without taking the job; of values it looks whether they are there, not what they hold.

    Raises:
        InputError: There is no job.
    """
    job = Job(folder, resume=True)
    content = JobContent({}, {})
    try:
        refuse_links(folder, job.values)
        running = _is_running(folder)
        content = read_as(JobContent, read_checked(folder / JOB), folder / JOB)
        journal = job.journal() or {}
        run = read_as(RunJournal, journal, folder / JOURNAL) if "counters" in journal else None
        if run is not None and not running:  # it replaces what the journal names
            _check_values(folder, run)
    except TwoheadsError as problem:
        return JobStatus("damaged", content.identity, content.request, problem=problem)
    return JobStatus(
        state="finished" if job.finished else "running" if running else "stopped",
        identity=content.identity,
        request=content.request,
        progress=_progress(folder),
        stages=() if run is None else run.finished_stages,
        part=None if run is None or run.part is None else run.part.stage,
        calls=None if run is None else run.calls,
    )


def _is_running(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock(descriptor)
    finally:
        os.close(descriptor)


def _check_values(folder: Path, journal: RunJournal) -> None:
    for name in journal.values:
        path = folder / VALUES / value_file(name)
        if not path.is_file():
            raise TwoheadsError(str(path), "is missing, and the checkpoint needs it", FIX)


def _progress(folder: Path) -> dict[str, Any]:
    """Of no consequence, and not flushed to the disk: after a power cut it may be no longer whole."""
    try:
        found = read_checked(folder / PROGRESS)
    except TwoheadsError:
        return {}
    whole = found.keys() >= TOLD and all(type(told) in (int, float) and abs(told) < MOST for told in found.values())
    return found if whole else {}
