"""A file that is written from its beginning again, over what a stopped process left of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.scratch import hold

__all__ = ["DELETE", "KeptFile"]

CHUNK_BYTES = 1 << 20
DELETE = "delete this file, then continue with `twoheads resume DIR`: its rows are computed again"


class KeptFile:
    """What a writer of archives needs of a file, on a file that may hold the first part of the same archive.

    Bytes that are handed on by :meth:`replay` are not written again: the writer, which computes its checksums from
    them, is made to believe so.

    Args:
        path: Created if it is missing.
        fresh: Throw away what it holds.

    Raises:
        TwoheadsError: It is a link.

    Attributes:
        found: Whether there was such a file.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        if path.is_symlink():
            raise TwoheadsError(str(path), "is a link, and would be written through", DELETE)
        self.path = path
        self.found = path.exists() and not fresh
        # What is thrown away is gone already (see sweep): a link in its place would be somebody else's.
        self._file: IO[bytes] = path.open("r+b" if self.found else "x+b" if fresh else "w+b")
        hold(self._file.fileno())
        self._replaying = False

    def write(self, data: bytes | memoryview) -> int:
        """Writes ``data``, or moves past it while it is replayed."""
        if self._replaying:
            self._file.seek(len(data), os.SEEK_CUR)
            return len(data)
        return self._file.write(data)

    def replay(self, nbytes: int) -> Iterator[bytes]:
        """The next ``nbytes`` of the file, in chunks; each must be given to :meth:`write` before the next is taken.

        Raises:
            TwoheadsError: The file ends before.
        """
        self._replaying = True
        try:
            while nbytes:
                data = self._file.read(min(nbytes, CHUNK_BYTES))
                if not data:
                    raise TwoheadsError(str(self.path), "is shorter than the checkpoint says", DELETE)
                self._file.seek(-len(data), os.SEEK_CUR)
                yield data
                nbytes -= len(data)
        finally:
            self._replaying = False

    def tell(self) -> int:
        """Where the next byte goes."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves there."""
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Returns when the disk has what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def end(self) -> None:
        """Drops what an earlier process may have left from here on."""
        self._file.truncate()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
