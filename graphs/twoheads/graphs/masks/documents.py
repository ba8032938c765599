"""Documents that lie one after the other on one token axis, each under the same mask and hidden from all others."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.expressions import Full, Interval, Intervals, Mask, intersect, unite

__all__ = ["Documents"]


@dataclass(frozen=True, slots=True)
class Documents(Mask):
    """Each query sees, of its own document, the keys that ``inner`` shows it; there the document begins at 0.

    Every mask keeps its meaning, also one that speaks of first positions or of chunks. Rows between documents see
    nothing, and nothing sees them.

    Attributes:
        inner: The mask of every document.
        starts: The first row of each document, ascending.
        lengths: The rows of each; none reaches the next one's start.
    """

    inner: Mask
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def dense(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        (queries, start), (keys, _) = self._places(i), self._places(j)
        visible: npt.NDArray[np.bool_] = (queries == keys) & (queries >= 0)
        return visible if isinstance(self.inner, Full) else visible & self.inner.dense(i - start, j - start)

    def support(self, rows: Interval) -> Intervals:
        return unite(self._shifted(self.inner.support(local), at) for at, local in self._touched(rows))

    def covered(self, rows: Interval) -> Intervals:
        touched = self._touched(rows)
        if len(touched) != 1 or touched[0][1][1] - touched[0][1][0] < rows[1] - rows[0]:
            return ()  # rows of two documents see no key in common, and rows of none see nothing
        at, local = touched[0]
        return self._shifted(self.inner.covered(local), at)

    def tile_key(self, row: int, key: int) -> Hashable:
        return row, key

    def changes(self, i: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
        """For each query: its row within its document, and the first row of the document and the one behind it."""
        at, start = self._places(i)
        return i - start, start, start + np.where(at < 0, 0, np.asarray(self.lengths)[at])

    def boundaries(self) -> frozenset[int]:
        return self.inner.boundaries() | frozenset(self.starts)

    def __str__(self) -> str:
        return f"{self.inner} in each of {len(self.starts)} documents"

    def _places(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The number of each row's document, -1 for none, and where that document starts (for none, any number)."""
        starts, lengths = np.asarray(self.starts), np.asarray(self.lengths)
        at = np.searchsorted(starts, rows, "right") - 1
        inside = (at >= 0) & (rows < starts[at] + lengths[at])
        return np.where(inside, at, -1), starts[at]

    def _touched(self, rows: Interval) -> list[tuple[int, Interval]]:
        """The documents that have some of ``rows``, each with which of its own rows these are."""
        first, stop = max(0, bisect_right(self.starts, rows[0]) - 1), bisect_left(self.starts, rows[1])
        touched: list[tuple[int, Interval]] = []
        for at in range(first, stop):
            start, length = self.starts[at], self.lengths[at]
            local = max(0, rows[0] - start), min(length, rows[1] - start)
            if local[0] < local[1]:
                touched.append((at, local))
        return touched

    def _shifted(self, keys: Intervals, at: int) -> Intervals:
        """Keys within document ``at`` as rows of the axis."""
        start = self.starts[at]
        inside = intersect((keys, ((0, self.lengths[at]),)))
        return tuple((start + first, start + stop) for first, stop in inside)
