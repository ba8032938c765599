"""What is said and refused where a disk has too little room."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.schedule.spill import enough_text

__all__ = ["RESUME", "check_room", "disk_errors", "sync_folder"]

RESUME = "free disk space, then continue with `twoheads resume DIR`; the last checkpoint is whole"
"""What helps a job."""

OTHER_REASONS = {
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder that is not read-only",
    errno.ELOOP: "choose another folder: links there point to each other",
    errno.EEXIST: "remove what is there, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What helps where free space would not."""


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
        problem = f"has {enough_text(free)} free, and {what} {enough_text(nbytes)}"
        raise TwoheadsError(str(folder), problem, "free disk space, or name another folder")


@contextlib.contextmanager
def disk_errors(path: Path, problem: str, fix: str) -> Generator[None]:
    """Turns the operating system's refusals into an error about ``path``.

    It tells what is free on the disk, and ``fix`` helps, unless it is no matter of room.
    """
    try:
        yield
    except OSError as error:
        if error.errno in OTHER_REASONS:
            reason = f"{problem}: {error.strerror or error}"
            raise TwoheadsError(str(path), reason, OTHER_REASONS[error.errno]) from error
        raise TwoheadsError(str(path), f"{problem}: {error.strerror or error}{_free(path)}", fix) from error


def _free(path: Path) -> str:
    try:
        return f" ({enough_text(shutil.disk_usage(path if path.is_dir() else path.parent).free)} free on its disk)"
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
