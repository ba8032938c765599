"""Stream arrays of known shape into a ``.npz`` file that appears only when it is complete.

Gemma's logits at 8192 tokens are 8.6 GB; written row block by row block they never sit in memory. The file is a plain
uncompressed zip (ZIP64) of ``.npy`` members, exactly what ``numpy.load`` reads.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError, TwoheadsError
from twoheads.graphs.serialization.json_codec import FormatError, to_json
from twoheads.runtime.memory.disk_space import RESUME, disk_errors, sync_folder
from twoheads.runtime.memory.kept_file import DELETE, KeptFile
from twoheads.runtime.memory.new_file import output_place, partial_file, sweep
from twoheads.runtime.memory.sink import KeptRows

__all__ = ["NpzArray", "NpzWriter"]

FIX = "check that the folder exists, that you may write to it and that the disk has room"


class NpzArray:
    """One array of an :class:`NpzWriter`, filled in ascending order of rows (axis 0).

    In a job it is what a checkpoint saves and restores: see :class:`~twoheads.runtime.execution.checkpoints.Companion`.
    """

    def __init__(self, writer: NpzWriter, stream: IO[bytes], name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self._writer = writer
        self._stream = stream
        self.name = name
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._row = 0
        self._sha256 = sha256()
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, header)

    @property
    def complete(self) -> bool:
        """Whether every row is written."""
        return self._row == self.shape[0]

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        """Appends ``rows [count, *shape[1:]]``, which are the rows from ``start_row`` on.

        Raises:
            InternalError: The rows are not the next ones, or do not have the declared shape.
            TwoheadsError: The disk refuses them.
        """
        if start_row != self._row or rows.shape[1:] != self.shape[1:] or start_row + len(rows) > self.shape[0]:
            raise InternalError(
                f"array {self.name} {self.shape}: got rows {start_row} + {rows.shape}, expected row {self._row} on"
            )
        data = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data
        with self._writer.disk_errors():
            self._stream.write(data)
        if self._writer.keeps:
            self._sha256.update(data)
        self._row += len(rows)
        if self.complete:
            self.finish()

    def save(self) -> Any:
        """Puts the rows so far on the disk, and says what they are."""
        with self._writer.disk_errors():
            self._writer.sync()
        return to_json(KeptRows(self._row, self._sha256.hexdigest()))

    def restore(self, saved: Any, rows: int) -> bool:
        """Goes on behind the rows that were saved; ``False`` if the file that held them is gone.

        Raises:
            FormatError: It is not this array that was saved, behind ``rows`` rows.
            TwoheadsError: The file does not hold them.
        """
        kept = KeptRows.read(saved, rows)
        if kept.rows > self.shape[0]:
            raise FormatError(f"rows: {kept.rows} are kept, and there are {self.shape[0]}")
        nbytes = kept.rows * int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with self._writer.disk_errors():
            for data in self._writer.replay(nbytes):
                self._stream.write(data)
                self._sha256.update(data)
                self._row = kept.rows
        if self._row and self._sha256.hexdigest() != kept.sha256:
            raise TwoheadsError(str(self._writer.temporary), "does not hold what the checkpoint says", DELETE)
        return self._row > 0

    def finish(self) -> None:
        """Closes the member of the zip; later arrays may be opened."""
        with self._writer.disk_errors():
            self._stream.close()


class NpzWriter:
    """Writes ``path`` through a temporary file beside it; an error or an interrupt leaves neither.

    ::

        with NpzWriter("out.npz") as file:
            bundle.run(tokens, output="logits", sink=file.array("logits", (length, vocabulary)))

    Args:
        path: The file to create or to replace; of a link, what it points to.
        keep: Name of a temporary file that stays when writing is stopped; a writer of the same arrays goes on with it.

    Raises:
        InputError: ``path`` is a device, a pipe or the like.
        TwoheadsError: The folder is missing or can't be written; raised on entering, before any work is done.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: str | None = None) -> None:
        self.path = output_place(Path(path))
        self.keeps = keep is not None
        self.temporary = partial_file(self.path) if keep is None else self.path.with_name(keep)
        self._file: KeptFile | None = None
        self._zip: zipfile.ZipFile | None = None
        self._open: NpzArray | None = None
        self._names: set[str] = set()

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise TwoheadsError(str(self.path), "is a folder, expected a file to write", "name a file, e.g. out.npz")
        with self.disk_errors():
            if not self.keeps:
                sweep(self.path)
            self._file = KeptFile(self.temporary, fresh=not self.keeps)
        self._zip = zipfile.ZipFile(cast("IO[bytes]", self._file), "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def array(self, name: str, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> NpzArray:
        """Starts the array ``name``; the previous one must be complete.

        Args:
            name: The key under which ``numpy.load`` finds it.
            shape: Its whole shape; axis 0 is what :meth:`NpzArray.write` advances over.
            dtype: Rows are cast to it.
        """
        if self._zip is None or name in self._names or not shape:
            raise InternalError(f"array {name} {tuple(shape)}: not open, written before, or without an axis")
        if self._open is not None and not self._open.complete:
            raise InternalError(f"array {self._open.name} is not complete; {name} can't start")
        self._names.add(name)
        with self.disk_errors():
            stream = self._zip.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
            self._open = NpzArray(self, stream, name, tuple(shape), dtype)
        if self._open.complete:
            self._open.finish()
        return self._open

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Writes a whole ``array`` of one axis or more."""
        self.array(name, array.shape, array.dtype).write(0, array)

    def sync(self) -> None:
        """Returns when the disk has what was written."""
        if self._file is not None:
            self._file.sync()

    def replay(self, nbytes: int) -> Iterator[bytes]:
        """What the kept file holds from here on; nothing if there was none."""
        return self._file.replay(nbytes) if self._file is not None and self._file.found else iter(())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._discard()

    def _commit(self) -> None:
        if self._zip is None or self._file is None:
            raise InternalError(f"{self.path} was never opened")
        if self._open is not None and not self._open.complete:
            raise InternalError(f"array {self._open.name} of {self.path} is not complete")
        with self.disk_errors():
            self._zip.close()
            self._file.end()
            self._file.sync()
            self._file.close()
            self.temporary.replace(self.path)
            if self.keeps:
                sync_folder(self.path.parent)
        self._file = self._zip = None

    def _discard(self) -> None:
        """Removes the temporary file if it is still there; after a commit there is nothing left to do."""
        if self._file is None:
            return
        # Whatever closing complains about (a full disk, a half-written member) is not news: the file goes away.
        if self._open is not None:
            with contextlib.suppress(TwoheadsError, ValueError):
                self._open.finish()
        if self._zip is not None:
            with contextlib.suppress(OSError, ValueError):
                self._zip.close()
        with contextlib.suppress(OSError):
            self._file.close()
        if not self.keeps:
            self.temporary.unlink(missing_ok=True)
        self._file = self._zip = None

    def disk_errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns the operating system's refusals into an error that names the file."""
        return disk_errors(self.path, "can't be written", RESUME if self.keeps else FIX)
