"""Memory of values that are gone, for values to come: new pages from the system cost more time than copying them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["KEPT_BYTES", "SpareMemory"]

KEPT_BYTES = 64 << 20
"""The most that is kept from one run to the next."""

Bytes = npt.NDArray[np.uint8]


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
