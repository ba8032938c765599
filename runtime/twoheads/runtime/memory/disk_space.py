"""What is said and refused where a disk has too little room."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.schedule.spill import size_text

__all__ = ["RESUME", "check_room", "disk_errors", "sync_folder"]

RESUME = "free disk space, then continue with `twoheads resume DIR`; the last checkpoint is whole"
"""What helps a job."""


def check_room(folder: Path, nbytes: int, what: str) -> None:
    """Refuses a run that will not fit on the disk of ``folder``, before it starts.

    Args:
        folder: Where it writes.
        nbytes: How much.
        what: Words before the number: who takes it.

    Raises:
        TwoheadsError: With what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        problem = f"has {size_text(free)} free, and {what} {size_text(nbytes)}"
        raise TwoheadsError(str(folder), problem, "free disk space, or name another folder")


@contextlib.contextmanager
def disk_errors(path: Path, problem: str, fix: str) -> Generator[None]:
    """Turns the operating system's refusals into an error about ``path`` that tells what is free on its disk."""
    try:
        yield
    except OSError as error:
        raise TwoheadsError(str(path), f"{problem}: {error.strerror or error}{_free(path)}", fix) from error


def _free(path: Path) -> str:
    try:
        return f" ({size_text(shutil.disk_usage(path if path.is_dir() else path.parent).free)} free on its disk)"
    except OSError:
        return ""


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to disk, where the system has a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
