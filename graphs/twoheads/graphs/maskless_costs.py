"""What an attention stage costs on an engine without a log-sum-exp: calls counted from its pieces, and the formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from twoheads.graphs.bands import band_of
from twoheads.graphs.formulas import Formula, attention_formula
from twoheads.graphs.maskless import maskless_rows
from twoheads.graphs.maskless_formula import maskless_formula
from twoheads.graphs.masks import Mask
from twoheads.graphs.program import AttentionStage
from twoheads.graphs.stock_engine import StockEngine
from twoheads.graphs.tiles import row_segments

__all__ = ["AttentionCosts", "needs_mask", "stock_costs"]


@dataclass(frozen=True, slots=True)
class AttentionCosts:
    """Calls, floating-point operations and bytes through the ports of all calls of one stage."""

    calls: int
    formula: Formula
    flops: int
    bytes_moved: int


def needs_mask(stage: AttentionStage) -> bool:
    """Whether a stage can't do without a mask input: a bias, or a mask that is no band (chunks, prefixes)."""
    return stage.bias is not None or band_of(stage.mask) is None


def stock_costs(stage: AttentionStage, engine: StockEngine, length: int) -> AttentionCosts:
    """The costs of ``stage`` on ``engine`` for ``length`` tokens."""
    sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile, "length": length}
    if needs_mask(stage):
        counts = {"masked": _tiles(stage.mask, **sizes)}
        formula = attention_formula(stage.mask, **sizes)
    else:
        triangles, full = _pieces(stage.mask, **sizes)
        counts = {"causal": triangles, "full": full}
        formula = maskless_formula(stage.mask, **sizes)
    moved = {variant: sum(port.nbytes for group in engine.ports(variant) for port in group) for variant in counts}
    return AttentionCosts(
        calls=sum(counts.values()),
        formula=formula,
        flops=sum(calls * engine.flops(variant) for variant, calls in counts.items()),
        bytes_moved=sum(calls * moved[variant] for variant, calls in counts.items()),
    )


@lru_cache(maxsize=64)
def _pieces(mask: Mask, *, block_size: int, key_tile: int, length: int) -> tuple[int, int]:
    """Triangles and full calls, counted row by row."""
    rows = maskless_rows(mask, block_size, length)
    triangles = sum(len(row.triangles) for row in rows)
    return triangles, sum(row.calls(key_tile) for row in rows) - triangles


@lru_cache(maxsize=64)
def _tiles(mask: Mask, *, block_size: int, key_tile: int, length: int) -> int:
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    rows = (row_segments(mask, block, **sizes) for block in range(-(-length // block_size)))
    return sum(segment.tiles for row in rows for segment in row)
