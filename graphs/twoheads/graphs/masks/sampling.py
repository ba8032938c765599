"""The average case (Theorem 4.1): most of the keys are not attended to but estimated from randomly drawn ones.

The paper permutes the keys at random and gives each block of queries one block of permuted keys, scaling the sums by
``N / M``. Here a block of queries attends exactly to the key tile it lies in (and to those of a window and of the first
keys, where wanted); from the remaining keys that it sees, ``samples`` tiles are drawn without replacement, key by key,
and their sums are scaled by *remaining / drawn*: ``lse += log(remaining / drawn)``. Each block draws anew, which is as
good as one permutation for a block and makes the errors of different blocks independent.

Whole tiles are exact or remaining, so that of a causal mask every remaining key is seen by every query of the block.
Where no more than ``samples`` tiles remain, nothing is drawn and the block is exact.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.graphs.costs.call_formulas import Formula
from twoheads.graphs.masks.expressions import (
    Causal,
    Chunk,
    Full,
    Interval,
    Intervals,
    Mask,
    Sinks,
    Window,
    disjunction,
    unite,
)
from twoheads.graphs.masks.tiles import Segment, row_segments

__all__ = ["Average", "AverageTally", "SampledRow", "average_formula", "average_tally", "draw_keys", "sampled_row"]


@dataclass(frozen=True, slots=True)
class Average:
    """How one attention samples its keys.

    Attributes:
        samples: Key tiles drawn for each query block, 1 or more.
        window: Tiles with a key less than this far from a query of the block are exact; ``None`` for none but its own.
        sinks: The tiles of so many first keys are exact.
        seed: Of the draws.
    """

    samples: int
    window: int | None
    sinks: int
    seed: int

    @staticmethod
    def applies_to(mask: Mask) -> bool:
        """Whether attention under ``mask`` may be sampled: the query sees everything, or everything before it."""
        return isinstance(mask, Full | Causal)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One block of queries.

    Attributes:
        exact: The key tiles that are attended to as they are.
        remaining: Runs of key positions from which keys are drawn; empty where every tile is exact.
    """

    exact: tuple[Segment, ...]
    remaining: Intervals

    @property
    def remaining_keys(self) -> int:
        """How many keys the drawn ones stand for."""
        return sum(stop - start for start, stop in self.remaining)


@dataclass(frozen=True, slots=True)
class AverageTally:
    """Calls of one attention: on exact tiles (``partial``: those with a mask), on drawn tiles; ``rows``: blocks."""

    exact: int
    partial: int
    drawn: int
    rows: int


def sampled_row(mask: Mask, average: Average, block: int, *, block_size: int, key_tile: int, length: int) -> SampledRow:
    """Which tiles of query block ``block`` are exact, and what its draws are taken from."""
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    near = [Chunk(key_tile), *([Window(average.window - 1, average.window - 1)] if average.window else [])]
    terms = (*near, Sinks(average.sinks)) if average.sinks else tuple(near)
    every = row_segments(mask, block, **sizes)
    kept = unite(
        ((segment.start, segment.stop),) for segment in row_segments(mask & disjunction(terms), block, **sizes)
    )
    exact, remaining = _split(every, kept)
    if sum(stop - start for start, stop in remaining) <= average.samples:
        return SampledRow(every, ())
    return SampledRow(exact, tuple((start * key_tile, min(stop * key_tile, length)) for start, stop in remaining))


def _split(segments: tuple[Segment, ...], kept: Intervals) -> tuple[tuple[Segment, ...], Intervals]:
    """The parts of ``segments`` inside of the runs ``kept``, and the runs of tiles outside of them."""
    inside: list[Segment] = []
    outside: list[Interval] = []
    for segment in segments:
        at = segment.start
        for start, stop in kept:
            low, high = max(at, start), min(segment.stop, stop)
            if low >= high:
                continue
            outside += [(at, low)] if at < low else []
            inside.append(Segment(low, high, segment.full))
            at = high
        outside += [(at, segment.stop)] if at < segment.stop else []
    return tuple(inside), unite((run,) for run in outside)


def draw_keys(average: Average, stage: str, block: int, remaining: Intervals, key_tile: int) -> npt.NDArray[np.int64]:
    """Positions of the drawn keys ``[samples, key_tile]``, all different, each set of them equally likely.

    They depend on the seed, the stage's name and the block only: not on threads, and not on other blocks.
    """
    sizes = np.array([stop - start for start, stop in remaining])
    ends = np.cumsum(sizes)
    generator = np.random.default_rng((average.seed, zlib.crc32(stage.encode()), block))
    picked = generator.choice(int(ends[-1]), average.samples * key_tile, replace=False)
    run = np.searchsorted(ends, picked, side="right")
    starts = np.array([start for start, _ in remaining])
    positions: npt.NDArray[np.int64] = (starts[run] + picked - (ends - sizes)[run]).astype(np.int64)
    return positions.reshape(average.samples, key_tile)


def average_tally(mask: Mask, average: Average, *, block_size: int, key_tile: int, length: int) -> AverageTally:
    """Counts the calls of all blocks."""
    exact = partial = drawn = 0
    blocks = -(-length // block_size)
    for block in range(blocks):
        row = sampled_row(mask, average, block, block_size=block_size, key_tile=key_tile, length=length)
        exact += sum(segment.tiles for segment in row.exact)
        partial += sum(not segment.full for segment in row.exact)
        drawn += average.samples if row.remaining else 0
    return AverageTally(exact, partial, drawn, blocks)


def average_formula(mask: Mask, average: Average, *, block_size: int, key_tile: int, length: int) -> Formula:
    """Engine calls of one attention, derived without the rows that it checks: ``O(N / M)``.

    With ``c = K / M``, a window that reaches ``t = ceil((W - 1) / M)`` blocks, ``S`` tiles of sinks and ``s`` samples,
    causal block ``a`` would leave out ``max(0, floor((a - t) / c) - S - s)`` of its tiles, hence
    ``n + F(n) - F(n - t - c*(S + s))`` calls: those of a window that is ``S + s`` tiles wider. In full attention every
    block without a window leaves out ``T - 1 - s``: ``n * min(T, 1 + s)``.
    """
    ratio, blocks, tiles = key_tile // block_size, -(-length // block_size), -(-length // key_tile)
    reach = -(-(average.window - 1) // block_size) if average.window else 0
    sunk, samples = -(-average.sinks // key_tile), average.samples
    if isinstance(mask, Causal):
        narrow = blocks - reach - ratio * (sunk + samples)
        calls = blocks + _below(blocks, ratio) - _below(narrow, ratio)
        left_out = f" - F(n - {reach + ratio * (sunk + samples)})" if narrow > 0 else ""
        return Formula(f"n + F(n){left_out} = {calls}", calls)
    if not reach and not sunk:
        calls = blocks * min(tiles, 1 + samples)
        return Formula(f"n*min(T, 1 + {samples}) = {calls}", calls)
    at = np.arange(blocks, dtype=np.int64)
    first, last = np.maximum(0, at - reach) // ratio, np.minimum(tiles - 1, (at + reach) // ratio)
    apart = np.minimum(min(sunk, tiles), first) + np.maximum(0, min(sunk, tiles) - 1 - last)
    calls = int(np.minimum(tiles, last - first + 1 + apart + samples).sum())
    return Formula(f"sum over n = {blocks} rows of min(T, exact tiles + {samples}) = {calls}", calls)


def _below(rows: int, ratio: int) -> int:
    """``F(rows)``: the sum of ``floor(a / ratio)`` over ``0 <= a < rows``."""
    q, r = divmod(max(0, rows), ratio)
    return ratio * q * (q - 1) // 2 + q * r
