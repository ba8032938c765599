"""Masks cut into pieces for engines that take none: full rectangles and triangles (Theorems 3.5 and 5.1, Claim B.6).

A query block of a *band* (causal, a window, with or without sinks) sees, row by row, an interval of keys whose ends
stay or move by one key a row. It is the disjoint union of

* a **full** rectangle: keys that every query of the block sees, from wherever they lie;
* a **lower** triangle, where the upper end moves: query ``a`` sees ``start .. start + a``, one causal call;
* an **upper** triangle, where the lower end moves: query ``a`` sees ``start + a .. start + size - 1``, one causal call
  with queries and keys in reversed order.

Triangles begin at any key, not on a grid of tiles, so any window fits any block. Nothing is ever subtracted. Keys that
a piece must not show (beyond the input, or another piece's) get the synthetic token's score and the value zero, which
cancels.

A window of ``width < M`` keys is narrower than a block: its block is cut into sub-blocks of ``width`` queries, each
with a triangle of either kind, and all of one kind share one call, kept apart by the codes of Theorem 4.2. The query
blocks are then ``width * floor(M / width)`` queries long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, count, islice
from math import comb

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import Interval, Intervals, Mask, unite
from twoheads.graphs.masks.terms import INFINITE

__all__ = ["MasklessRow", "Triangle", "code_size", "code_words", "maskless_rows", "query_block"]


@dataclass(frozen=True, slots=True)
class Triangle:
    """A square of queries and keys of which a causal engine shows one half.

    Attributes:
        start: The key of column 0; column ``b`` is key ``start + b``.
        upper: Whether query ``a`` sees the columns ``b >= a``, otherwise ``b <= a``.
        shown: The keys that are shown at all, ``[low, high)``.
        sub_block: Queries of a sub-block: only columns of the query's own sub-block are seen. 0 for one block.
        open_end: Whether the last column of every sub-block is hidden.
    """

    start: int
    upper: bool
    shown: Interval
    sub_block: int = 0
    open_end: bool = False

    def columns(self, size: int) -> npt.NDArray[np.bool_]:
        """Which of ``size`` columns are shown at all."""
        columns = np.arange(size)
        keys = self.start + columns
        visible = (keys >= self.shown[0]) & (keys < self.shown[1])
        if self.open_end:
            visible &= columns % self.sub_block != self.sub_block - 1
        return visible

    def dense(self, size: int) -> npt.NDArray[np.bool_]:
        """What the queries see, bool ``[size, size]``."""
        a, b = np.arange(size)[:, None], np.arange(size)[None, :]
        seen = (b >= a if self.upper else b <= a) & self.columns(size)[None, :]
        return seen & (a // self.sub_block == b // self.sub_block) if self.sub_block else seen


@dataclass(frozen=True, slots=True)
class MasklessRow:
    """A query block and the pieces that its keys are cut into.

    Attributes:
        start, size: The queries ``[start, start + size)``; those at the input's length and beyond are padding.
        triangles: The causal calls.
        full: The keys that every query sees.
    """

    start: int
    size: int
    triangles: tuple[Triangle, ...]
    full: Intervals

    @property
    def full_keys(self) -> int:
        """How many keys every query sees."""
        return sum(stop - start for start, stop in self.full)

    def chunks(self, tile: int) -> list[Intervals]:
        """The full keys in chunks of at most ``tile``, one call each; a chunk may span a gap between intervals."""
        chunks: list[list[Interval]] = []
        room = 0
        for start, stop in self.full:
            at = start
            while at < stop:
                if not room:
                    chunks.append([])
                    room = tile
                end = min(stop, at + room)
                chunks[-1].append((at, end))
                room -= end - at
                at = end
        return [tuple(chunk) for chunk in chunks]

    def calls(self, tile: int) -> int:
        """Calls of an engine with full calls of ``tile`` keys."""
        return len(self.triangles) + -(-self.full_keys // tile)


def query_block(mask: Mask, block_size: int) -> int:
    """Queries of a block: ``block_size``, or as many whole sub-blocks as it holds if the window is narrower."""
    band = _band(mask)
    width = band.left + band.right + 1
    return width * (block_size // width) if width < block_size else block_size


@lru_cache(maxsize=16)
def maskless_rows(mask: Mask, block_size: int, length: int) -> tuple[MasklessRow, ...]:
    """Every query block of ``mask`` with its pieces, for an input of ``length`` tokens.

    Raises:
        InternalError: The mask is not a band.
    """
    band = _band(mask)
    if band.sinks >= length:
        band = Band(INFINITE, band.right, 0)
    size = query_block(mask, block_size)
    return tuple(_row(band, start, size, length) for start in range(0, length, size))


def _band(mask: Mask) -> Band:
    band = band_of(mask)
    if band is None:
        raise InternalError(f"the mask {mask} is not a band, it can't be cut into triangles")
    return band


def _row(band: Band, start: int, size: int, length: int) -> MasklessRow:
    last_low = start + size - 1 - band.left  # the first key of the last query, as far as the window goes
    rising = start + band.right < length  # whether the upper end moves within the block
    leaving = last_low > band.sinks  # whether the lower end does
    top = start + band.right if rising else length
    lower = (Triangle(top, False, (top, length)),) if rising else ()
    if not leaving:
        return MasklessRow(start, size, lower, _spans((0, top)))
    if rising and band.left + band.right + 1 < size:
        return _narrow_row(band, start, size, length)
    bottom = min(last_low + 1, top)
    upper = Triangle(start - band.left, True, (max(start - band.left, band.sinks), bottom))
    return MasklessRow(start, size, (*lower, upper), _spans((0, band.sinks), (bottom, top)))


def _narrow_row(band: Band, start: int, size: int, length: int) -> MasklessRow:
    width, top = band.left + band.right + 1, start + band.right
    pieces = [
        Triangle(top, False, (max(top, band.sinks), length), width),
        Triangle(start - band.left, True, (max(0, start - band.left, band.sinks), length), width, open_end=True),
    ]
    if band.sinks > top:  # queries of this block reach into the sinks one by one
        pieces.append(Triangle(top, False, (top, min(band.sinks, length))))
    real = min(size, length - start)
    seen = tuple(piece for piece in pieces if piece.dense(size)[:real].any())
    return MasklessRow(start, size, seen, _spans((0, min(band.sinks, top))))


def _spans(*spans: Interval) -> Intervals:
    return unite(((start, stop),) for start, stop in spans if start < stop)


def code_size(mask: Mask, block_size: int) -> int:
    """Coordinates of the codes that keep a narrow window's sub-blocks apart; 0 where there are none."""
    size = query_block(mask, block_size)
    band = _band(mask)
    width = band.left + band.right + 1
    words = size // width if width < size else 1
    return 0 if words == 1 else next(bits for bits in count(1) if comb(bits, bits // 2) >= words)


def code_words(size: int, words: int) -> npt.NDArray[np.bool_]:
    """Distinct words of ``size`` bits, ``[words, size]``, all with ``floor(size / 2)`` ones.

    Queries take a word, keys minus its complement: their product is exactly 0 for equal words and at most -1 for
    others, because a word of as many ones always has a one where the other has a zero (Theorem 4.2).
    """
    codes = np.zeros((words, size), np.bool_)
    for row, ones in enumerate(islice(combinations(range(size), size // 2), words)):
        codes[row, list(ones)] = True
    return codes
