"""A run's result as an array in a file of its job, from which a run goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.memory.kept_file import DELETE
from twoheads.runtime.memory.mapped_file import MappedFile
from twoheads.runtime.memory.sink import KeptRows

__all__ = ["KeptArray"]


class KeptArray:
    """A sink whose rows a checkpoint saves and restores, see ``Companion``.

    Args:
        path: The file.
        rows, width: The array's size, 1 or more each.

    Attributes:
        array: ``[rows, width]`` float32; good for as long as it is held, even when the file is removed.

    Raises:
        TwoheadsError: The disk has no room for it.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        nbytes = rows * width * np.dtype(np.float32).itemsize
        self._path = path
        self._found = path.exists() and path.stat().st_size == nbytes
        self._file = MappedFile(path, nbytes, window=False, keep=True, reopen=self._found)
        self.array = self._file.array((rows, width), "float32")
        self._rows = 0

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        """Takes ``rows [count, width]``, the rows from ``start_row`` on."""
        self._rows = start_row + len(rows)
        self.array[start_row : self._rows] = rows

    def save(self) -> Any:
        """Puts the rows so far on the disk, and says what they are."""
        self._file.flush()
        return to_json(KeptRows(self._rows, self._digest()))

    def restore(self, saved: Any, rows: int) -> bool:
        """Goes on behind the rows that were saved; ``False`` if the file that held them is gone.

        Raises:
            FormatError: It is not this array that was saved, behind ``rows`` rows.
            TwoheadsError: The file does not hold them.
        """
        if not self._found:
            return False
        kept = KeptRows.read(saved, rows)
        self._rows = kept.rows
        if self._digest() != kept.sha256:
            raise TwoheadsError(str(self._path), "does not hold what the checkpoint says", DELETE)
        return True

    def _digest(self) -> str:
        return hashlib.sha256(self.array[: self._rows].reshape(-1).view(np.uint8).data).hexdigest()
