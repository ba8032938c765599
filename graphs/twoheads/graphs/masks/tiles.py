"""Which key tiles a block of queries needs, and the mask tile of those that need one.

The tiles of one query block form a few :class:`Segment` runs, found by interval arithmetic on the mask, so that
neither full nor structured masks are ever enumerated as a grid of ``(N / M)^2`` tiles:

* **empty** tiles (no query sees a key) do not appear: no call;
* **full** tiles (every query sees every key) form runs of any length: a call without a mask;
* **partial** tiles stand alone: a call with :func:`mask_tile`, shared by all tiles of equal :func:`tile_key`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import And, Interval, Intervals, Mask, Or, unite

__all__ = ["Segment", "mask_tile", "row_segments", "tile_key"]


@dataclass(frozen=True, slots=True)
class Segment:
    """The key tiles ``[start, stop)`` of one query block: a run of full tiles, or a single partial one."""

    start: int
    stop: int
    full: bool

    @property
    def tiles(self) -> int:
        """How many tiles, that is engine calls."""
        return self.stop - self.start


def row_segments(mask: Mask, block: int, *, block_size: int, key_tile: int, length: int) -> tuple[Segment, ...]:
    """The non-empty key tiles of query block ``block``, ascending, classified exactly.

    The queries are the real ones, ``[block * block_size, min((block + 1) * block_size, length))``; keys at ``length``
    and beyond are padding, so a tile that reaches them is never full. Costs time in proportion to the result.

    Raises:
        InternalError: The block starts beyond ``length``.
    """
    rows = _rows(block, block_size, length)
    touched = _touched(mask.support(rows), key_tile, length)
    inside = _inside(mask.covered(rows), key_tile, length)
    segments: list[Segment] = []
    for run in touched:
        at = run[0]
        for full_run in (f for f in inside if run[0] <= f[0] and f[1] <= run[1]):
            segments.extend(_settle(mask, rows, (at, full_run[0]), key_tile, length))
            segments.append(Segment(*full_run, True))
            at = full_run[1]
        segments.extend(_settle(mask, rows, (at, run[1]), key_tile, length))
    return _merge_full(segments)


def tile_key(mask: Mask, block: int, tile: int, *, block_size: int, key_tile: int, length: int) -> Hashable:
    """A key by which mask tiles are shared: equal keys, equal :func:`mask_tile` arrays."""
    remaining = _remaining(mask, block, tile, block_size, key_tile, length)
    rows, keys = (block * block_size, (block + 1) * block_size), (tile * key_tile, (tile + 1) * key_tile)
    return block_size, key_tile, remaining, _pattern(mask, rows, keys)


def mask_tile(
    mask: Mask, block: int, tile: int, *, block_size: int, key_tile: int, length: int
) -> npt.NDArray[np.bool_]:
    """The mask of one tile, bool ``[block_size, key_tile]``, True = visible.

    Padded keys (at ``length`` and beyond) are hidden; where the mask itself hides them from every real query, its
    tile is left as it is, padded queries included, so that the last diagonal tile is shared with all others.
    """
    i = np.arange(block * block_size, (block + 1) * block_size, dtype=np.int64)[:, None]
    j = np.arange(tile * key_tile, (tile + 1) * key_tile, dtype=np.int64)[None, :]
    visible = np.array(np.broadcast_to(mask.dense(i, j), (block_size, key_tile)))
    visible[:, _remaining(mask, block, tile, block_size, key_tile, length) :] = False
    return visible


def _rows(block: int, block_size: int, length: int) -> Interval:
    start, stop = block * block_size, min((block + 1) * block_size, length)
    if not 0 <= start < stop:
        raise InternalError(f"block {block} of {block_size} tokens is not in an input of {length}")
    return start, stop


def _remaining(mask: Mask, block: int, tile: int, block_size: int, key_tile: int, length: int) -> int:
    """Keys of the tile that the mask tile may show: all, unless real queries would otherwise see padding."""
    if (tile + 1) * key_tile <= length:
        return key_tile
    support = mask.support(_rows(block, block_size, length))
    reaches_padding = bool(support) and support[-1][1] > length
    return max(0, length - tile * key_tile) if reaches_padding else key_tile


def _touched(keys: Intervals, key_tile: int, length: int) -> Intervals:
    """Runs of tiles that hold at least one of ``keys`` below ``length``."""
    clipped = ((start, min(stop, length)) for start, stop in keys if start < length)
    return unite(((start // key_tile, (stop - 1) // key_tile + 1),) for start, stop in clipped)


def _inside(keys: Intervals, key_tile: int, length: int) -> Intervals:
    """Runs of tiles all of whose keys are among ``keys`` and below ``length``."""
    runs = ((-(-start // key_tile), min(stop, length) // key_tile) for start, stop in keys)
    return tuple(run for run in runs if run[0] < run[1])


def _settle(mask: Mask, rows: Interval, tiles: Interval, key_tile: int, length: int) -> Iterator[Segment]:
    """Classifies tiles between support and cover, which for compound masks are only bounds."""
    for tile in range(*tiles):
        start, stop = tile * key_tile, min((tile + 1) * key_tile, length)
        pattern = _pattern(mask, rows, (start, stop))
        if isinstance(pattern, bool):
            some, every = pattern, pattern
        else:
            some, every = _seen(_Corner(pattern, rows[1] - rows[0], stop - start, mask, rows[0], start))
        if some:
            yield Segment(tile, tile + 1, every and stop - start == key_tile)


def _pattern(mask: Mask, rows: Interval, keys: Interval) -> Hashable:
    """What the mask looks like on a rectangle: True or False if constant, else a key of the undecided terms.

    Terms that are constant on the rectangle leave no trace, so that the tile of the attention sinks is one and the
    same for all queries whose window is far away.
    """
    if not isinstance(mask, And | Or):
        if _holds(mask.covered(rows), keys):
            return True
        if not any(start < keys[1] and keys[0] < stop for start, stop in mask.support(rows)):
            return False
        return mask, mask.tile_key(rows[0], keys[0])
    neutral = isinstance(mask, And)
    undecided: list[Hashable] = []
    for term in mask.terms:
        pattern = _pattern(term, rows, keys)
        if pattern is (not neutral):
            return not neutral
        if pattern is not neutral:
            undecided.append(pattern)
    if not undecided:
        return neutral
    return undecided[0] if len(undecided) == 1 else (type(mask).__name__, *undecided)


def _holds(keys: Intervals, wanted: Interval) -> bool:
    return any(start <= wanted[0] and wanted[1] <= stop for start, stop in keys)


@dataclass(frozen=True, slots=True)
class _Corner:
    """A rectangle of ``rows x columns`` pairs; equal to every other of its size and pattern."""

    pattern: Hashable
    rows: int
    columns: int
    mask: Mask = field(compare=False)
    row: int = field(compare=False)
    column: int = field(compare=False)


@lru_cache(maxsize=4096)
def _seen(corner: _Corner) -> tuple[bool, bool]:
    """Whether some pair, and whether every pair, of the rectangle is visible."""
    i = np.arange(corner.row, corner.row + corner.rows, dtype=np.int64)[:, None]
    j = np.arange(corner.column, corner.column + corner.columns, dtype=np.int64)[None, :]
    visible = corner.mask.dense(i, j)
    return bool(visible.any()), bool(visible.all())


def _merge_full(segments: list[Segment]) -> tuple[Segment, ...]:
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if last is not None and last.full and segment.full and last.stop == segment.start:
            merged[-1] = Segment(last.start, segment.stop, True)
        else:
            merged.append(segment)
    return tuple(merged)
