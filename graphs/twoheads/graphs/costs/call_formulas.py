"""The theorem's call counts as closed formulas, derived without the tile classification that they check.

With blocks of ``M`` queries, key tiles of ``K = c * M`` keys, ``n = ceil(N / M)`` block rows and ``T = ceil(N / K)``
tiles, block row ``a`` lies below the diagonal tile ``floor(a / c)``. Everything is built from

    ``F(m) = sum of floor(a / c) for 0 <= a < m = c * q * (q - 1) / 2 + q * r``,  ``q = m // c``, ``r = m % c``

* ``full``: every row meets every tile, ``n * T``;
* ``causal``: row ``a`` meets tiles ``0 .. floor(a / c)``, ``n + F(n)``;
* a window of ``w`` keys to the left begins in tile ``floor((a - t) / c)`` with ``t = ceil(w / M)``: ``- F(n - t)``;
* ``w`` keys to the right end ``u = ceil(w / M)`` blocks further, at most in tile ``T - 1``: ``- F(u) + u * (T - 1)``;
* ``s`` sinks add the ``S = ceil(s / K)`` first tiles as far as they precede the window:
  ``F(b) + S * (n - t - b)`` with ``b = min(n - t, c * S)`` (and, unless causal, as far as they follow it);
* chunks of whole tiles are independent inputs of the chunk's length.

Equivalent spellings of a mask have one formula: it is derived from its terms (:mod:`twoheads.graphs.masks.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from twoheads.graphs.costs.long_inputs import extrapolated
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.documents import Documents
from twoheads.graphs.masks.expressions import And, Causal, Chunk, Full, Mask, Or, Sinks, Window
from twoheads.graphs.masks.terms import INFINITE, Term, mask_terms

__all__ = [
    "Formula",
    "attention_formula",
    "count_visible_pairs",
    "cross_formula",
    "symbols",
]

COUNTED_BLOCKS = 1 << 15
"""Blocks that are looked at one by one."""

COUNTED_QUERIES = 1 << 21
"""Queries that are looked at one by one."""

_ROWS = 1 << 16
"""Queries that are looked at together."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A call count: the formula as text, with its constants and result, and the number."""

    text: str
    calls: int


def symbols(*, block_size: int, key_tile: int, length: int) -> str:
    """What the symbols in the formulas' texts stand for, e.g. for the legend of a plan."""
    grid = _Grid(block_size, key_tile, length)
    below = f"sum of floor(a / {grid.ratio}) over 0 <= a < m" if grid.ratio > 1 else "m*(m - 1)/2"
    return (
        f"n = ceil({length} / {block_size}) = {grid.blocks} blocks, T = ceil({length} / {key_tile}) = {grid.tiles} "
        f"key tiles, F(m) = {below}"
    )


@lru_cache(maxsize=256)
def attention_formula(mask: Mask, *, block_size: int, key_tile: int, length: int) -> Formula:
    """Engine calls of one attention: its non-empty (query block, key tile) pairs, for any ``length >= 1``."""
    grid = _Grid(block_size, key_tile, length)
    count = _closed(mask_terms(mask), grid)
    if count is None:
        most = COUNTED_BLOCKS * block_size
        sizes = {"period": key_tile, "most": most}
        (calls,) = extrapolated(lambda n: (_count_tiles(mask, replace(grid, length=n)),), mask, length, **sizes)
        return Formula(f"sum over n = {grid.blocks} rows of their tiles with a visible key = {calls}", calls)
    return Formula(f"{count.text} = {count.calls}", count.calls)


def cross_formula(*, block_size: int, key_tile: int, queries: int, keys: int) -> Formula:
    """Engine calls of a cross attention: every block of queries meets every tile of the other axis's keys."""
    calls = -(-queries // block_size) * -(-keys // key_tile)
    return Formula(f"ceil({queries}/M)*ceil({keys}/K) = {calls}", calls)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Block rows and key tiles of an input of ``length`` tokens."""

    block_size: int
    key_tile: int
    length: int

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def tiles(self) -> int:
        return -(-self.length // self.key_tile)

    @property
    def ratio(self) -> int:
        return self.key_tile // self.block_size

    def below(self, rows: int) -> int:
        """``F(rows)``: tiles strictly below the diagonal one, summed over the first ``rows`` block rows."""
        q, r = divmod(max(0, rows), self.ratio)
        return self.ratio * q * (q - 1) // 2 + q * r


@dataclass(slots=True)
class _Sum:
    """A growing sum: its text and its value."""

    text: str = ""
    calls: int = 0

    def add(self, text: str, value: int) -> _Sum:
        self.text = f"{self.text} + {text}" if self.text else text
        self.calls += value
        return self

    def subtract(self, text: str, value: int) -> _Sum:
        self.text += f" - {text}"
        self.calls -= value
        return self


def _closed(terms: tuple[Term, ...] | None, grid: _Grid) -> _Sum | None:
    """The closed formula of a simplified mask, or ``None`` where there is none."""
    match terms:
        case (Term(left, right, sinks, chunk),) if sinks == INFINITE:
            if chunk == INFINITE:
                return _band(left, right, grid, "n", "T")
            return (_whole_chunks if chunk % grid.key_tile == 0 else _ragged_chunks)(left, right, chunk, grid)
        case (Term(left, right, sinks, chunk),) if (left, right, chunk) == (INFINITE,) * 3:
            tiles = min(-(-sinks // grid.key_tile), grid.tiles)
            return _Sum().add(f"n*{tiles}", grid.blocks * tiles)
        case (first, second):
            band, sunk = (first, second) if first.sinks == INFINITE else (second, first)
            if band.sinks != INFINITE or (band.chunk, sunk.chunk, sunk.left) != (INFINITE,) * 3:
                return None
            if sunk.right > band.right and sunk.right != INFINITE:
                return None
            return _band_and_sinks(band, sunk, grid)
        case _:
            return None


def _band(left: int, right: int, grid: _Grid, n: str, t: str) -> _Sum:
    """Tiles of ``i - left <= j <= i + right``; ``n`` and ``t`` are the texts for the numbers of blocks and tiles."""
    behind, ahead = -(-left // grid.block_size), -(-right // grid.block_size)
    count = _Sum()
    if ahead >= grid.blocks:
        count.add(f"{n}*{t}", grid.blocks * grid.tiles)
    else:
        count.add(n, grid.blocks).add(f"F({n})", grid.below(grid.blocks))
        if ahead:
            count.subtract(f"F({ahead})", grid.below(ahead)).add(f"{ahead}*({t} - 1)", ahead * (grid.tiles - 1))
    if behind < grid.blocks:
        rows = f"{n} - {behind}" if behind else n
        count.subtract(f"F({rows})", grid.below(grid.blocks - behind))
    return count


def _band_and_sinks(band: Term, sunk: Term, grid: _Grid) -> _Sum:
    """A band, plus the sinks' tiles before it and (where the sinks are not causal) after it."""
    count = _band(band.left, band.right, grid, "n", "T")
    tiles = min(-(-sunk.sinks // grid.key_tile), grid.tiles)
    rows = max(0, grid.blocks - -(-band.left // grid.block_size))
    near = min(rows, grid.ratio * tiles)
    if rows:
        count.add(f"F({near})", grid.below(near)).add(f"{tiles}*{rows - near}", tiles * (rows - near))
    ahead, stop = -(-band.right // grid.block_size), min(grid.ratio * tiles, grid.blocks)
    if sunk.right == INFINITE and ahead < stop:
        count.add(f"{stop - ahead}*{tiles - 1}", (stop - ahead) * (tiles - 1))
        count.subtract(f"F({stop})", grid.below(stop)).add(f"F({ahead})", grid.below(ahead))
    return count


def _whole_chunks(left: int, right: int, chunk: int, grid: _Grid) -> _Sum:
    """Chunks of whole key tiles: each is an input of its own."""
    count = _Sum()
    chunks, rest = divmod(grid.length, chunk)
    for times, length in ((chunks, chunk), (1, rest)):
        if times and length:
            part = _Grid(grid.block_size, grid.key_tile, length)
            inner = _band(left, right, part, str(part.blocks), str(part.tiles))
            count.add(f"{times}*({inner.text})", times * inner.calls)
    return count


def _ragged_chunks(left: int, right: int, chunk: int, grid: _Grid) -> _Sum:
    """Chunks that cut tiles: a sum over rows, from the first query's first key to the last query's last key.

    A row's keys leave no gap, also where its queries belong to several chunks, for each query sees at least itself.
    """

    def count(length: int) -> tuple[int]:
        blocks = -(-length // grid.block_size)
        start = np.arange(blocks, dtype=np.int64) * grid.block_size
        end = np.minimum(start + grid.block_size, length) - 1
        first = np.maximum(start // chunk * chunk, start - min(left, length))
        last = np.minimum(np.minimum((end // chunk + 1) * chunk - 1, end + min(right, length)), length - 1)
        return (int((last // grid.key_tile - first // grid.key_tile + 1).sum()),)

    mask = Chunk(chunk) & Window(left if left < grid.length else 0, right if right < grid.length else 0)
    most = COUNTED_BLOCKS * 32 * grid.block_size
    (calls,) = extrapolated(count, mask, grid.length, period=grid.key_tile, most=most)
    return _Sum(
        f"sum over n = {grid.blocks} rows of floor(last / {grid.key_tile}) - floor(first / {grid.key_tile}) + 1, from "
        f"the first to the last key in the row's chunks of {chunk}",
        calls,
    )


@lru_cache(maxsize=1 << 6)
def count_visible_pairs(mask: Mask, length: int) -> int:
    """The (query, key) pairs of an input of ``length`` tokens that ``mask`` shows."""
    if mask == Full():
        return length * length
    return extrapolated(lambda n: (_visible_pairs(mask, n),), mask, length, most=COUNTED_QUERIES)[0]


def _visible_pairs(mask: Mask, length: int) -> int:
    pairs = 0
    for start in range(0, length, _ROWS):
        i = np.arange(start, min(start + _ROWS, length), dtype=np.int64)[:, None]
        edges = np.sort(np.clip(np.concatenate([0 * i, 0 * i + length, *_changes(mask, i)], 1), 0, length))
        # Where two edges coincide the difference is 0, whatever the mask says of the key behind them.
        pairs += int((mask.dense(i, edges[:, :-1]) * np.diff(edges)).sum())
    return pairs


def _count_tiles(mask: Mask, grid: _Grid) -> int:
    """Counts the non-empty tiles of a mask without a closed formula, row by row.

    A query sees all or none of the keys between two neighbouring positions at which no term of the mask changes, so
    the mask is evaluated only there.
    """
    calls = 0
    for row in range(0, grid.length, grid.block_size):
        i = np.arange(row, min(row + grid.block_size, grid.length), dtype=np.int64)[:, None]
        edges = np.sort(np.clip(np.concatenate([0 * i, 0 * i + grid.length, *_changes(mask, i)], 1), 0, grid.length))
        seen = mask.dense(i, edges[:, :-1]) & (edges[:, :-1] < edges[:, 1:])
        first, last = edges[:, :-1][seen] // grid.key_tile, (edges[:, 1:][seen] - 1) // grid.key_tile
        counted = -1
        for start, stop in np.unique(np.stack([first, last], 1), axis=0).tolist():
            calls += max(0, stop - max(start, counted + 1) + 1)
            counted = max(counted, stop)
    return calls


def _changes(mask: Mask, i: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Key positions ``[rows, 1]`` where a term of the mask may begin or cease to see a key of query ``i``."""
    match mask:
        case And(parts) | Or(parts):
            return [edge for part in parts for edge in _changes(part, i)]
        case Causal():
            return [i + 1]
        case Window(left, right):
            return [i - left, i + right + 1]
        case Sinks(size):
            return [0 * i + size]
        case Chunk(size):
            return [i // size * size, i // size * size + size]
        case Documents(inner):
            local, start, stop = mask.changes(i)
            return [start, stop, *(start + edge for edge in _changes(inner, local))]
        case Full():
            return []
        case _:
            raise InternalError(f"no formula for the mask {mask}")
