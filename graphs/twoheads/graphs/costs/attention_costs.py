"""What an attention stage costs on engines of tiles: calls counted row by row, and the formula."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from twoheads.graphs.costs.call_formulas import Formula, attention_formula, cross_formula
from twoheads.graphs.costs.long_inputs import extrapolated
from twoheads.graphs.costs.sampling import average_formula, average_tally
from twoheads.graphs.masks.expressions import Full, Mask
from twoheads.graphs.masks.sampling import Average, sampled_row
from twoheads.graphs.masks.tiles import Segment, row_segments
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import AttentionEngine, AttentionStage

__all__ = ["AttentionCosts", "attention_rows", "port_bytes", "tile_costs"]

COUNTED_BLOCKS = 1 << 15
"""Blocks of an input that are looked at one by one; counts of longer inputs are computed from those of shorter ones."""


@dataclass(frozen=True, slots=True)
class AttentionCosts:
    """Calls, floating-point operations and bytes through the ports of all calls of one stage."""

    calls: int
    formula: Formula
    flops: int
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class _Tally:
    """Tiles of one attention: all, partial ones, and those that are merged with nothing, the first of each block."""

    tiles: int
    partial: int
    rows: int


def attention_rows(
    stage: AttentionStage, *, block_size: int, key_tile: int, queries: int, keys: int, cross: bool
) -> tuple[tuple[Segment, ...], ...]:
    """The non-empty key tiles of every query block; those of keys that are not drawn.

    Args:
        stage: The attention.
        block_size: Tokens of a query block.
        key_tile: Tokens of a key tile.
        queries: Tokens on the queries' axis.
        keys: Tokens on the keys' axis; as many unless ``cross``.
        cross: Whether the keys are on another axis: every block then sees all of them.
    """
    if cross:
        # All blocks are alike, and the first one is in an input of any length.
        row = row_segments(Full(), 0, block_size=block_size, key_tile=key_tile, length=keys)
        return (row,) * -(-queries // block_size)
    if stage.average is None:
        return _rows(stage.mask, block_size, key_tile, queries)
    return _exact_rows(stage.mask, stage.average, block_size, key_tile, queries)


@lru_cache(maxsize=16)
def _rows(mask: Mask, block_size: int, key_tile: int, length: int) -> tuple[tuple[Segment, ...], ...]:
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    return tuple(row_segments(mask, block, **sizes) for block in range(-(-length // block_size)))


@lru_cache(maxsize=16)
def _exact_rows(
    mask: Mask, average: Average, block_size: int, key_tile: int, length: int
) -> tuple[tuple[Segment, ...], ...]:
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    return tuple(sampled_row(mask, average, block, **sizes).exact for block in range(-(-length // block_size)))


@lru_cache(maxsize=64)
def _sampled_tally(mask: Mask, average: Average, block_size: int, key_tile: int, length: int) -> _Tally:
    found = average_tally(mask, average, block_size=block_size, key_tile=key_tile, length=length)
    return _Tally(found.exact + found.drawn, found.partial, found.rows + found.drawn)


@lru_cache(maxsize=64)
def _tally(mask: Mask, block_size: int, key_tile: int, length: int) -> _Tally:
    def count(tokens: int) -> tuple[int, int, int]:
        found = _count(_rows(mask, block_size, key_tile, tokens))
        return found.tiles, found.partial, found.rows

    return _Tally(*extrapolated(count, mask, length, period=key_tile, most=COUNTED_BLOCKS * block_size))


def _count(rows: tuple[tuple[Segment, ...], ...]) -> _Tally:
    return _Tally(
        tiles=sum(segment.tiles for row in rows for segment in row),
        partial=sum(not segment.full for row in rows for segment in row),
        rows=sum(bool(row) for row in rows),
    )


def tile_costs(stage: AttentionStage, engine: AttentionEngine, queries: int, keys: int | None) -> AttentionCosts:
    """The costs of ``stage`` on ``engine``, for ``queries`` tokens; and as many ``keys``, if they are not others."""
    sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile}
    if keys is not None:
        row = _count(attention_rows(stage, **sizes, queries=1, keys=keys, cross=True))
        blocks = -(-queries // engine.block_size)
        tally = _Tally(row.tiles * blocks, row.partial * blocks, row.rows * blocks)
        return _tally_costs(stage, engine, tally, cross_formula(**sizes, queries=queries, keys=keys))
    if (average := stage.average) is None:
        formula = attention_formula(stage.mask, **sizes, length=queries)
        return _tally_costs(stage, engine, _tally(stage.mask, **sizes, length=queries), formula)
    sampled = _sampled_tally(stage.mask, average, **sizes, length=queries)
    return _tally_costs(stage, engine, sampled, average_formula(stage.mask, average, **sizes, length=queries))


def _tally_costs(stage: AttentionStage, engine: AttentionEngine, tally: _Tally, formula: Formula) -> AttentionCosts:
    masked = tally.tiles if stage.bias else tally.partial
    merges = tally.tiles - (0 if stage.sinks else tally.rows)
    plain = port_bytes(engine.ports("full"))
    mask, previous = (port_bytes(engine.ports(variant)) - plain for variant in ("masked", "full_merge"))
    return AttentionCosts(
        calls=tally.tiles,
        formula=formula,
        flops=tally.tiles * engine.call_flops(),
        bytes_moved=tally.tiles * plain + masked * mask + merges * previous,
    )


def port_bytes(groups: Iterable[tuple[Port, ...]]) -> int:
    """Bytes of all ports."""
    return sum(port.nbytes for group in groups for port in group)
