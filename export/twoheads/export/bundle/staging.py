"""Writing a folder so that it is there completely or not at all.

The content is written into a hidden sibling folder, forced to disk and renamed into place. An exception, Ctrl-C
included, removes the sibling. What a killed process leaves behind carries the process in its name and is removed by
the next write to the same target, once that process is gone.

An old folder and the new one change places in one operation of the system, so that a kill finds the one or the other.
Where the system has no such operation, a kill between two renames leaves the old one under a hidden name, and the next
write to the same target puts it back first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.bundle_format import PARTIAL
from twoheads.runtime.memory.disk_space import sync_folder

__all__ = ["REPLACED", "host_name", "partial_folder", "sync_tree", "write_error", "written_folder"]

REPLACED = "replaced"
"""Marks the former folder while the new one takes its place."""

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
"""Linux: paths are from the working directory; Linux and macOS: two names change places."""


@contextlib.contextmanager
def written_folder(target: Path, *, overwrite: bool, check_replaceable: Callable[[Path], None]) -> Generator[Path]:
    """Yields an empty folder that becomes ``target`` when the block ends without an exception.

    Args:
        target: The folder to create; its parents are created too.
        overwrite: Replace an existing target; the old one stays in place until the new one is complete.
        check_replaceable: Called with an existing target, raises if it must not be replaced.

    Raises:
        BundleError: The target exists, can't be replaced, or the disk refuses; also for an ``OSError`` of the block.
    """
    target = Path(os.path.realpath(target))
    try:
        _restore(target)
        _check_target(target, overwrite, check_replaceable)
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as partial:
            yield partial
            sync_tree(partial)
            _check_target(target, overwrite, check_replaceable)
            _rename_into_place(partial, target)
    except OSError as error:
        raise write_error(target, error) from error
    _remove_stale(target, REPLACED)


@contextlib.contextmanager
def partial_folder(target: Path) -> Generator[Path]:
    """A new empty folder beside ``target``, for what will be there; removed in the end, whatever it holds then.

    What killed processes left on the way to the same target is removed first.
    """
    partial = target.with_name(_marked_name(target.name, PARTIAL))
    _remove_stale(target, PARTIAL)
    try:
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_error(path: Path, error: OSError) -> BundleError:
    """The refusal of the disk as a :class:`BundleError` with what helps against it."""
    reason = error.strerror or str(error)
    fixes = {
        errno.ENOSPC: "free some space or write to another disk",
        errno.EDQUOT: "free some of your quota or write to another disk",
        errno.EACCES: "choose a place you may write to",
        errno.EPERM: "choose a place you may write to",
        errno.EROFS: "choose a place that is not read-only",
    }
    return BundleError(str(path), f"could not be written: {reason}", fixes.get(error.errno or 0, ""))


def sync_tree(folder: Path) -> None:
    """Forces every file below ``folder``, and the folders' entries, to disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _check_target(target: Path, overwrite: bool, check_replaceable: Callable[[Path], None]) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise BundleError(str(target), "exists already", "name another place, or replace it: --force")
    check_replaceable(target)


def _rename_into_place(partial: Path, target: Path) -> None:
    if not os.path.lexists(target):
        partial.rename(target)
        sync_folder(target.parent)
        return
    if _exchange(partial, target):  # the former is removed as what is partial
        sync_folder(target.parent)
        return
    former = target.with_name(_marked_name(target.name, REPLACED))
    target.rename(former)
    try:
        partial.rename(target)
    except BaseException:
        former.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one operation; whether this system, and its disk, can."""
    paths = os.fsencode(one), os.fsencode(other)
    with contextlib.suppress(OSError, AttributeError):
        system = ctypes.CDLL(None)
        if sys.platform.startswith("linux"):
            return bool(system.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0)
        if sys.platform == "darwin":
            return bool(system.renamex_np(*paths, RENAME_SWAP) == 0)
    return False


def _restore(target: Path) -> None:
    """Puts back the former folder that a kill left beside its place."""
    if not os.path.lexists(target) and target.parent.is_dir():
        for former in _stale(target, REPLACED)[:1]:
            former.rename(target)


def _marked_name(name: str, mark: str) -> str:
    """``.NAME.MARK-HOST-PID-START``: the start time tells a process from a later one of equal number."""
    start = int(psutil.Process().create_time())
    return f".{name}.{mark}-{host_name()}-{os.getpid()}-{start}"


def host_name() -> str:
    """This machine's name with nothing in it but letters, digits and dots."""
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())


def _remove_stale(target: Path, mark: str) -> None:
    for entry in _stale(target, mark):
        shutil.rmtree(entry, ignore_errors=True)


def _stale(target: Path, mark: str) -> list[Path]:
    """What processes of this host that are gone left behind on the way to ``target``."""
    pattern = re.compile(re.escape(f".{target.name}.{mark}-{host_name()}-") + r"(\d+)-(\d+)")
    found = ((entry, pattern.fullmatch(entry.name)) for entry in list(target.parent.iterdir()))
    return [entry for entry, match in found if match and not _runs(int(match[1]), int(match[2]))]


def _runs(pid: int, start: int) -> bool:
    try:
        # Start times are computed from the boot time, which clock adjustments move by a second.
        return bool(abs(psutil.Process(pid).create_time() - start) <= 2)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
