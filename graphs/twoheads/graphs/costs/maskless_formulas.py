"""The call counts of maskless attention as closed formulas, derived without the pieces that they check.

With blocks of ``Q`` queries (``M``, or for a window narrower than ``M`` its largest multiple below), calls of ``K``
full keys and ``n = ceil(N / Q)`` rows, row ``a`` needs

* a lower triangle while its first query's last key ``a Q + right`` is a key of the input: the first ``g`` rows;
* an upper triangle as soon as its last query's window leaves the first ``s`` keys (the sinks): all but ``u`` rows;
* calls for the keys between the triangles, and the sinks: ``C(x) = ceil(x / K)`` for ``x`` keys.

So a causal mask takes ``n + sum of C(a Q)``, and a window of ``r >= M`` keys ``2 + C(s + r - 1 - M)`` a row, which is
Theorem 5.1's ``O(N / M)`` without a subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from twoheads.graphs.costs.call_formulas import Formula
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.pieces import query_block
from twoheads.graphs.masks.terms import INFINITE

__all__ = ["PieceCount", "maskless_formula", "piece_count"]


@dataclass(frozen=True, slots=True)
class PieceCount:
    """Pieces of one attention: triangles, calls for full keys, and the formula's text without the result."""

    triangles: int
    full: int
    text: str


@lru_cache(maxsize=256)
def maskless_formula(mask: Mask, *, block_size: int, key_tile: int, length: int) -> Formula:
    """Engine calls of one attention whose engine takes no mask, all heads in one call."""
    found = piece_count(mask, block_size=block_size, key_tile=key_tile, length=length)
    calls = found.triangles + found.full
    return Formula(f"{found.text} = {calls}", calls)


@lru_cache(maxsize=256)
def piece_count(mask: Mask, *, block_size: int, key_tile: int, length: int) -> PieceCount:
    """The triangles and full calls of one attention, for any ``length >= 1``."""
    band = band_of(mask)
    if band is None:
        raise InternalError(f"the mask {mask} is not a band")
    if band.sinks >= length:
        band = Band(INFINITE, band.right, 0)
    return _Count(band, query_block(mask, block_size), key_tile, length).total()


def ceil_sum(count: int, start: int, step: int, divisor: int) -> int:
    """``sum of ceil((start + step * t) / divisor) for 0 <= t < count``, in logarithmic time; nothing negative."""
    return _floor_sum(count, divisor, step, start + divisor - 1)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """``sum of floor((a * i + b) / m) for 0 <= i < n``, by the Euclidean algorithm."""
    total = 0
    while n > 0:
        total += (a // m) * n * (n - 1) // 2 + (b // m) * n
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, b, a, m = last // m, last % m, m, a
    return total


@dataclass(frozen=True, slots=True)
class _Count:
    band: Band
    size: int
    tile: int
    length: int

    def total(self) -> PieceCount:
        band, size, rows = self.band, self.size, -(-self.length // self.size)
        rising = min(rows, max(0, -(-(self.length - band.right) // size)))
        staying = min(rows, (band.left + 1 + band.sinks) // size)
        near = min(rising, staying)
        middle = range(staying, rising)
        full = ceil_sum(near, band.right, size, self.tile) if near else 0
        parts = [f"{rising}"] if rising else []
        if rows > staying:
            parts.append(f"{rows - staying}")
        if near:
            parts.append(f"sum of C({f'{size}a' if size > 1 else 'a'}{_plus(band.right)}) over a < {near}")
        triangles = rising + rows - staying
        if middle:
            each = -(-self.middle_keys // self.tile)
            full += len(middle) * each
            if self.middle_keys:
                parts.append(f"{len(middle)}*C({self.middle_keys})")
            extra, keys = self.corrections(middle)
            triangles, full = triangles + extra, full + keys
            if extra + keys:
                parts.append(f"{extra + keys}")
        far = rows - max(rising, staying)
        if staying > rising:
            full += (staying - rising) * -(-self.length // self.tile)
            parts.append(f"{staying - rising}*C({self.length})")
        if far:
            keys = self.ending(rows - far, rows)
            full += keys
            parts.append(f"{keys} for the last {far}")
        legend = f", C(x) = ceil(x / {self.tile}), n = {rows} rows of {size} queries"
        return PieceCount(triangles, full, " + ".join(parts).replace("+ -", "- ") + legend)

    @property
    def narrow(self) -> bool:
        return self.band.left + self.band.right + 1 < self.size

    @property
    def middle_keys(self) -> int:
        """Full keys of a row between two triangles: the sinks and what lies between."""
        between = 0 if self.narrow else max(0, self.band.left + self.band.right - self.size)
        return self.band.sinks + between

    def corrections(self, rows: range) -> tuple[int, int]:
        """Triangles and full calls by which narrow rows differ from 2 and ``C(sinks)`` each.

        A window of one key has no upper triangles; neither has a first or last row that holds no second query of a
        sub-block. The one row whose queries reach into the sinks one by one shows those as a triangle.
        """
        if not self.narrow:
            return 0, 0
        band, width = self.band, self.band.left + self.band.right + 1
        triangles = keys = 0
        single = width == 1
        triangles -= len(rows) if single else 0
        reaching = [a for a in (max(0, band.sinks - 1 - band.right) // self.size,) if a in rows]
        for a in {*reaching, rows[0], rows[-1]}:
            top, real = a * self.size + band.right, min(self.size, self.length - a * self.size)
            if not single and band.sinks >= top + (real - 1) // width * width:
                triangles -= 1
            if band.sinks > top:
                triangles += 1 - (top + real <= band.sinks)
                keys += -(-top // self.tile) - -(-band.sinks // self.tile)
        return triangles, keys

    def ending(self, first: int, last: int) -> int:
        """Full calls of rows whose window reaches the end of the input and leaves its beginning."""
        widest = self.length + self.band.left - self.size  # keys above the upper triangle, plus first query's number
        wide = range(first, min(last, max(first, widest // self.size + 1)))
        sinks = self.band.sinks
        total = (last - first - len(wide)) * -(-sinks // self.tile)
        if wide:
            least = widest - wide[-1] * self.size
            total += ceil_sum(len(wide), sinks + least, self.size, self.tile)
        return total


def _plus(number: int) -> str:
    return f" + {number}" if number else ""
