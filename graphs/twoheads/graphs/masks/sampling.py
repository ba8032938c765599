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

__all__ = ["Average", "SampledRow", "draw_keys", "sampled_row"]


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
