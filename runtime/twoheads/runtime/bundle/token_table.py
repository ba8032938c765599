"""A table of the weights' file of which a process holds the rows that tokens name, and no page more."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TokenTable"]


class TokenTable:
    """A private mapping of a table ``[rows, *shape]``. Thread-safe.

    Who reads a mapped row has many pages around it mapped as well: Linux 6.18 maps all that its cache keeps as one, up
    to 2 MB. Some hundred tokens then hold a whole table. A page of a private mapping that is *written* first becomes
    the process's own, alone. So rows that are going to be read are written into it before, from the file. Others hold
    what the file holds, too: whoever reads them reads the same numbers, and only the memory is more.

    Args:
        path: The file.
        offset: Where the table begins in it, in bytes.
        dtype, shape: Of the table.

    Attributes:
        array: The table.
    """

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = path.open("rb", buffering=0)
        begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        count = int(np.prod(shape, dtype=np.int64))
        length = offset - begin + count * dtype.itemsize
        self._map = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
        self._file_begin, self._before = begin, offset - begin
        self._row_bytes = count * dtype.itemsize // shape[0]
        self._own = np.zeros(shape[0], bool)
        self._lock = threading.Lock()
        array = np.frombuffer(self._map, dtype, count, offset - begin).reshape(shape)
        array.flags.writeable = False
        self.array = array

    def fetch(self, rows: npt.NDArray[Any]) -> None:
        """Makes ``rows``, numbers in any shape, the process's own."""
        with self._lock:
            wanted = np.unique(rows)
            memory = memoryview(self._map)
            for row in wanted[~self._own[wanted]].tolist():
                start = self._before + row * self._row_bytes
                self._file.seek(self._file_begin + start)
                self._file.readinto(memory[start : start + self._row_bytes])
            self._own[wanted] = True

    def let_go(self) -> None:
        """Gives back the memory of all rows; they are fetched again when they are asked for."""
        with self._lock:
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)
                self._own[:] = False
