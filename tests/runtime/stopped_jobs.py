"""Jobs that are stopped when they want to write a checkpoint, and go on: as a killed process, without the process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from twoheads.runtime import Job, LoadedBundle, Result

__all__ = ["StoppedError", "again", "run_stopped", "stage_begun", "stop_after"]


class StoppedError(Exception):
    """What a stopped job raises."""


def again(folder: Path) -> Job:
    """The job of this folder: a new one, or the one that was stopped there."""
    return Job(folder, resume=(folder / "job.json").exists())


def stop_after(job: Job, count: int) -> None:
    """Lets the job fail when it wants to write one more checkpoint than ``count``."""
    original, written = job.write_journal, 0

    def write(content: Any) -> None:
        nonlocal written
        if written == count:
            raise StoppedError
        original(content)
        written += 1

    job.write_journal = write  # type: ignore[method-assign]


def stage_begun(folder: Path) -> str | None:
    """The stage that the last checkpoint is within."""
    if not (folder / "job.json").exists():
        return None
    with Job(folder, resume=True) as job:
        part = (job.journal() or {}).get("part")
        return None if part is None else str(part["stage"])


def run_stopped(bundle: LoadedBundle, folder: Path, tokens: Any) -> tuple[set[str | None], Result]:
    """Runs a job of hidden states that is stopped after every checkpoint; the stages that it went on within."""
    within = set[str | None]()
    done: Any = None
    while done is None:
        within.add(stage_begun(folder))
        with again(folder) as job, contextlib.suppress(StoppedError):
            stop_after(job, 1)
            done = bundle.run_job(job, tokens, output="hidden")
    return within, done
