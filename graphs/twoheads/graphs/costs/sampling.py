"""Calls of attention with randomly drawn keys: counted row by row, and by formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twoheads.graphs.costs.call_formulas import Formula
from twoheads.graphs.masks.expressions import Causal, Mask
from twoheads.graphs.masks.sampling import Average, sampled_row

__all__ = ["AverageTally", "average_formula", "average_tally"]


@dataclass(frozen=True, slots=True)
class AverageTally:
    """Calls of one attention: on exact tiles (``partial``: those with a mask), on drawn tiles; ``rows``: blocks."""

    exact: int
    partial: int
    drawn: int
    rows: int


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
