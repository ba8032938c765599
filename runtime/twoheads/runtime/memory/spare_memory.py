"""Memory of values that are gone, for values to come: new pages from the system cost more time than copying them.

And what goes back to the system at once, where memory is limited.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["KEPT_BYTES", "SpareMemory", "return_large_blocks"]

KEPT_BYTES = 64 << 20
"""The most that is kept from one run to the next."""

LARGE_BLOCK = 1 << 20
MMAP_THRESHOLD = -3
"""What glibc's ``mallopt`` sets: from how many bytes on a block is a mapping of its own."""

Bytes = npt.NDArray[np.uint8]


@lru_cache(maxsize=1)
def return_large_blocks() -> bool:
    """Lets every block of a megabyte or more go back to the system when it is freed; whether this process can.

    Otherwise glibc learns from each such block that is freed to keep the next ones, up to 32 MB each. Weights that are
    opened and let go layer by layer leave gaps then: a quarter more memory than is ever in use (int4, 7B widths).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BLOCK))
    except (AttributeError, OSError):  # another C library
        return False


class SpareMemory:
    """Pieces of memory, oldest first. Of one run at a time: not thread-safe."""

    def __init__(self) -> None:
        self._pieces: list[Bytes] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.nbytes for piece in self._pieces)

    def take(self, nbytes: int) -> Bytes:
        """A piece of exactly ``nbytes``, contents undefined: a spare one, or a new one."""
        for at, piece in enumerate(self._pieces):
            if piece.nbytes == nbytes:
                return self._pieces.pop(at)
        return np.empty(nbytes, np.uint8)

    def give(self, piece: Bytes) -> None:
        """Adds a piece that nobody reads or writes any more."""
        self._pieces.append(piece)

    def trim(self, most: int) -> None:
        """Lets the oldest pieces go until at most ``most`` bytes are left."""
        while self._pieces and self.nbytes > most:
            self._pieces.pop(0)
