"""What an attention stage costs on an engine without a log-sum-exp: calls counted from its pieces, and the formula."""

from __future__ import annotations

from functools import lru_cache

from twoheads.graphs.costs.attention_costs import AttentionCosts, port_bytes
from twoheads.graphs.costs.call_formulas import Formula, attention_formula
from twoheads.graphs.costs.maskless_formulas import maskless_formula, piece_count
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.pieces import maskless_rows
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.engines.oracle import OracleEngine
from twoheads.graphs.program.engines.stock_attention import StockEngine
from twoheads.graphs.program.program import AttentionStage

__all__ = ["needs_mask", "oracle_costs", "oracle_formula", "stock_costs"]


def needs_mask(stage: AttentionStage) -> bool:
    """Whether a stage can't do without a mask input: a bias, or a mask that is no band (chunks, prefixes)."""
    return stage.bias is not None or band_of(stage.mask) is None


def stock_costs(stage: AttentionStage, engine: StockEngine, length: int, keys: int | None = None) -> AttentionCosts:
    """The costs of ``stage`` on ``engine`` for ``length`` tokens; it takes no other ``keys``."""
    _check_keys(stage, engine.name, keys)
    sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile, "length": length}
    if needs_mask(stage):
        counts = {"masked": _tiles(stage.mask, **sizes)}
        formula = attention_formula(stage.mask, **sizes)
    else:
        triangles, full = _pieces(stage.mask, **sizes)
        counts = {"causal": triangles, "full": full}
        formula = maskless_formula(stage.mask, **sizes)
    moved = {variant: port_bytes(engine.ports(variant)) for variant in counts}
    return AttentionCosts(
        calls=sum(counts.values()),
        formula=formula,
        flops=sum(calls * engine.call_flops(variant) for variant, calls in counts.items()),
        bytes_moved=sum(calls * moved[variant] for variant, calls in counts.items()),
    )


def oracle_costs(stage: AttentionStage, engine: OracleEngine, length: int, keys: int | None = None) -> AttentionCosts:
    """The costs of ``stage`` on an oracle: its heads' instances, ``H' L'`` a call (Lemma 3.3)."""
    _check_keys(stage, engine.name, keys)
    triangles, full = _pieces(stage.mask, block_size=engine.block_size, key_tile=engine.key_tile, length=length)
    halves = 1 if engine.mask == "full" else 2
    calls = -(-engine.q_num_heads * (triangles + halves * full) // engine.slots)
    moved = port_bytes(engine.ports(engine.mask))
    return AttentionCosts(
        calls=calls,
        formula=oracle_formula(stage.mask, engine, length),
        flops=calls * engine.call_flops(engine.mask),
        bytes_moved=calls * moved,
    )


def oracle_formula(mask: Mask, engine: OracleEngine, length: int) -> Formula:
    """Calls of an oracle for one attention: ``ceil(H (triangles + 2 full) / (H' L'))``.

    A bidirectional oracle has no triangles and takes the full calls once (Theorem 3.4); a causal one takes each in two
    halves, one of them in reversed order (Theorem 3.5).
    """
    found = piece_count(mask, block_size=engine.block_size, key_tile=engine.block_size, length=length)
    halves = 1 if engine.mask == "full" else 2
    calls = -(-engine.q_num_heads * (found.triangles + halves * found.full) // engine.slots)
    pieces = f"{found.full}" if halves == 1 else f"({found.triangles} + 2*{found.full})"
    text = f"ceil({engine.q_num_heads}*{pieces} / ({engine.heads}*{engine.layers})) = {calls}"
    return Formula(f"{text}, from {found.text}", calls)


def _check_keys(stage: AttentionStage, engine: str, keys: int | None) -> None:
    if keys is not None:
        raise InternalError(f"stage {stage.name}: cross attention on the engine {engine}")


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
