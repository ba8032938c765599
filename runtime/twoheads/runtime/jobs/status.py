"""How far a job is, for whoever looks at its folder from outside, while it runs or after it was stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.jobs.job import FIX, JOB, LOCK, PROGRESS, VALUES, Job, lock, read_checked
from twoheads.runtime.memory.mapped_file import value_file

__all__ = ["JobStatus", "read_status"]


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
    running = _is_running(folder)
    content: dict[str, Any] = {}
    try:
        content = read_checked(folder / JOB)
        journal = job.journal() or {}
        if not running:  # it replaces what the journal names
            _check_values(folder, journal)
    except TwoheadsError as problem:
        return JobStatus("damaged", content.get("identity", {}), content.get("request", {}), problem=problem)
    part = journal.get("part")
    return JobStatus(
        state="finished" if journal.get("finished") else "running" if running else "stopped",
        identity=content.get("identity", {}),
        request=content.get("request", {}),
        progress=_progress(folder),
        stages=tuple(journal.get("finished_stages", ())),
        part=None if part is None else part["stage"],
        calls=sum(calls for calls, _, _ in journal["counters"].values()) if "counters" in journal else None,
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


def _check_values(folder: Path, journal: dict[str, Any]) -> None:
    for name in journal.get("values", {}):
        path = folder / VALUES / value_file(name)
        if not path.is_file():
            raise TwoheadsError(str(path), "is missing, and the checkpoint needs it", FIX)


def _progress(folder: Path) -> dict[str, Any]:
    """Of no consequence, and not flushed to the disk: after a power cut it may be no longer whole."""
    try:
        return read_checked(folder / PROGRESS)
    except TwoheadsError:
        return {}
