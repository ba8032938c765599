"""Which variants of a stock engine a program can call, for whatever length."""

from __future__ import annotations

from twoheads.graphs.costs.maskless_costs import needs_mask
from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.program import AttentionStage, Program, StockEngine

__all__ = ["used_stock_variants"]


def used_stock_variants(program: Program, engine: StockEngine) -> tuple[str, ...]:
    """The variants of ``engine`` that some stage may call at some length, in the order of ``VARIANTS``.

    A variant too many costs a few kilobytes, so a doubt (whether a narrow window ever has full keys) is a yes.
    """
    used: set[str] = set()
    for stage in program.body:
        if not isinstance(stage, AttentionStage) or stage.engine != engine.name:
            continue
        band = band_of(stage.mask)
        if band is None or needs_mask(stage):
            used.add("masked")
            continue
        used.add("full")
        if (band.left, band.right) != (INFINITE, INFINITE):
            used.add("causal")
    return tuple(variant for variant in StockEngine.VARIANTS if variant in used)
