"""Files that are there completely or not at all: written beside their place, and moved there when they are whole.

A link is followed: what it points to is replaced, and the link stays. What is no regular file, such as a device or a
pipe, is never replaced. While a file is written, its writer holds a lock on it; what a killed writer left is removed by
the next one of the same place.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Generator
from pathlib import Path
from typing import IO

from twoheads.graphs.errors import InputError
from twoheads.graphs.scratch import hold

__all__ = ["output_place", "partial_file", "replacing", "sweep", "sweep_folder"]

FIX = "name a file"

KINDS = (
    (stat.S_ISLNK, "a link to itself"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
"""What is never replaced, and how errors call it."""


def output_place(path: Path) -> Path:
    """Where a file ``path`` is written: itself, or the end of the links that it is.

    Raises:
        InputError: Something is there that is no regular file, or links that end nowhere.
    """
    place = Path(os.path.realpath(path))
    try:
        mode = os.lstat(place).st_mode
    except FileNotFoundError:
        return place
    except OSError as error:
        raise InputError(str(path), f"can't be written: {error.strerror or error}", FIX) from None
    for is_kind, what in KINDS:
        if is_kind(mode):
            raise InputError(str(path), f"is {what}, and results are written to a file of their own", FIX)
    return place


@contextlib.contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """A new file that takes the place of ``path`` when the block ends without an exception.

    Raises:
        InputError: See :func:`output_place`.
        OSError: The disk refuses.
    """
    place = output_place(path)
    sweep(place)
    partial = partial_file(place)
    with partial.open("xb") as file:
        try:
            hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def partial_file(place: Path) -> Path:
    """The name under which this process writes what will be ``place``."""
    return place.with_name(f".{place.name}.{os.getpid()}.partial")


def sweep(place: Path) -> None:
    """Removes what killed processes, and whoever had this process's number, left of ``place``."""
    _sweep(place.parent, re.escape(place.name))


def sweep_folder(folder: Path, ending: str) -> None:
    """Removes what killed processes left of any file of ``folder`` whose name ends so."""
    _sweep(folder, f".+{re.escape(ending)}")


def _sweep(folder: Path, names: str) -> None:
    pattern = re.compile(rf"\.{names}\.(\d+)\.partial")
    try:
        found = os.listdir(folder)
    except OSError:  # whoever writes there is told
        return
    for name in found:
        match = pattern.fullmatch(name)
        if match and (int(match[1]) == os.getpid() or not _runs(int(match[1]))) and not _is_held(folder / name):
            (folder / name).unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _is_held(path: Path) -> bool:
    """Whether its writer lives, perhaps on another machine or in another container; links and the like are none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return True
    try:
        return not hold(descriptor)
    finally:
        os.close(descriptor)
