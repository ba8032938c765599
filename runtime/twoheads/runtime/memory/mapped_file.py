"""Files that hold values of a run, mapped into memory, with their pages let go behind readers and writers."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.schedule.spill import WINDOW_BYTES, enough_text
from twoheads.runtime.memory.disk_space import RESUME, disk_errors

__all__ = ["MappedFile", "value_file"]

ZEROS = bytes(1 << 20)
OTHER_FOLDER = "free disk space, or spill to another folder"


class MappedFile:
    """A file of ``nbytes``, mapped; removed from its folder at once unless it is to be kept: no kill leaves it behind.

    All of its disk space is claimed at the start. Otherwise a full disk would show only when a page is written through
    the mapping, which kills the process.

    Args:
        path: Where; a file that is there is replaced.
        nbytes: Its size, 1 or more.
        window: Whether pages are let go behind readers and writers.
        keep: Leave the file in its folder.
        reopen: Map a file that was kept, with what it holds.

    Raises:
        TwoheadsError: The disk is full, the folder refuses the file, or there is none of this size to reopen.
    """

    def __init__(
        self, path: Path, nbytes: int, *, window: bool = True, keep: bool = False, reopen: bool = False
    ) -> None:
        self.path = path
        self.nbytes = nbytes
        self.window = window
        self._touched = 0
        self._lock = threading.Lock()
        problem = f"can't take {enough_text(nbytes)} of a run's values"
        self._errors = partial(disk_errors, path.parent, problem, RESUME if keep else OTHER_FOLDER)
        with self._errors():
            descriptor = os.open(path, os.O_RDWR if reopen else os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                if reopen:
                    _check_size(path, descriptor, nbytes)
                else:
                    _claim(descriptor, nbytes)
                self._map = mmap.mmap(descriptor, nbytes)
            except BaseException:
                keep = keep and reopen
                raise
            finally:
                os.close(descriptor)
                if not keep:
                    os.unlink(path)

    def array(self, shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
        """The file as an array, which keeps the mapping alive."""
        return np.frombuffer(self._map, dtype, prod(shape)).reshape(shape)

    def touch(self, nbytes: int) -> None:
        """Notes that ``nbytes`` are about to be read or written; lets all pages go where a window is full.

        That loses nothing: a page that is touched again, even by another thread at this moment, comes back from the
        page cache or the disk.
        """
        if not self.window:
            return
        with self._lock:
            self._touched += nbytes
            if self._touched < WINDOW_BYTES:
                return
            self._touched = 0
        _advise(self._map, "MADV_DONTNEED", 0, self.nbytes)

    def flush(self) -> None:
        """Returns when the disk has what was written."""
        with self._errors():
            self._map.flush()

    def prefetch(self, start: int, nbytes: int) -> None:
        """Has the system read ``nbytes`` from ``start`` on while the engines compute."""
        first = start - start % mmap.PAGESIZE
        stop = min(start + nbytes, self.nbytes)
        if self.window and first < stop:
            _advise(self._map, "MADV_WILLNEED", first, stop - first)


def _check_size(path: Path, descriptor: int, nbytes: int) -> None:
    size = os.fstat(descriptor).st_size
    if size != nbytes:
        problem = f"has {size} bytes, the checkpoint says {nbytes}"
        raise TwoheadsError(str(path), problem, "start the run again in another folder")


def _claim(descriptor: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
        return
    for start in range(0, nbytes, len(ZEROS)):  # a system without it, such as macOS
        os.write(descriptor, ZEROS[: nbytes - start])


def _advise(mapped: mmap.mmap, name: str, start: int, nbytes: int) -> None:
    advice = getattr(mmap, name, None)  # a hint, which not every system takes
    if advice is not None:
        mapped.madvise(advice, start, nbytes)


def value_file(name: str) -> str:
    """The name of the file that holds the value ``name``, which may be no name for a file itself."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.bin"
