"""Folders for intermediate files, gone when their command is; what a killed one left is swept by the next.

Beside each folder lies a file that its maker has locked, which the system lets go however the process ends. The file is
there before the folder and goes after it, so that no moment leaves a folder that nobody would sweep.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from twoheads.graphs.errors import InputError

__all__ = ["hold", "scratch_folder"]

PREFIX, LOCK = "twoheads-scratch-", ".lock"


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TRIES = 5
"""Of locking a new file, which a sweep of another command may hold for a moment."""


@contextlib.contextmanager
def scratch_folder() -> Generator[Path]:
    """A new empty folder among the temporary files, and none of those that killed commands of this user left.

    Raises:
        InputError: There is no room for it or for what is written there, or no right to make it.
    """
    with _told():
        temporary = Path(tempfile.gettempdir())
        _sweep(temporary)
        descriptor, lock = _locked_file(temporary)
    folder = lock.with_suffix("")
    try:
        with _told():
            folder.mkdir(mode=0o700)
        try:
            yield folder
        except OSError as error:
            if error.errno in FULL:
                raise _refusal(error) from error
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(error) from error


def _refusal(error: OSError) -> InputError:
    where = tempfile.tempdir or "temporary folder"
    reason = f"can't hold intermediate files: {error.strerror or error}"
    return InputError(str(where), reason, "make room there, or name another folder in the environment as TMPDIR")


def hold(descriptor: int) -> bool:
    """Locks a file until it is closed, which the system sees to however the process ends; whether it could."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked_file(temporary: Path) -> tuple[int, Path]:
    """A new file of this process's own, locked where the system can."""
    left = TRIES
    while True:
        left -= 1
        descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=LOCK, dir=temporary)
        if (hold(descriptor) and os.fstat(descriptor).st_nlink) or not left:
            return descriptor, Path(name)
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)


def _sweep(temporary: Path) -> None:
    if os.name != "posix":
        return
    for lock in temporary.glob(f"{PREFIX}*{LOCK}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and hold(descriptor):
                    folder = lock.with_suffix("")
                    if not folder.is_symlink():
                        shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink()
            finally:
                os.close(descriptor)
