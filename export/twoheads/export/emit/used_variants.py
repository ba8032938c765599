"""Which variants of an attention engine a program can call, for whatever length."""

from __future__ import annotations

from twoheads.graphs.costs.maskless_costs import needs_mask
from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.program import AttentionEngine, Program, StockEngine
from twoheads.graphs.variants.packing import longest_packable, packed_variant

__all__ = ["used_stock_variants", "used_tile_variants"]


def used_tile_variants(program: Program, engine: AttentionEngine) -> tuple[str, ...]:
    """The variants of ``engine`` that some stage may call at some length, in the order of ``ALL_VARIANTS``.

    A bias needs a mask for every tile; learned sinks are the partial result that the first tile is merged with; a
    narrow window never has a full tile. A variant too many costs a few kilobytes, so a doubt is a yes. A row that adds
    begins with a full tile. The packed ones follow where the program can pack requests at all.
    """
    used: set[str] = set()
    longest = longest_packable(program)
    for stage in program.attentions:
        if stage.engine == engine.name:
            kinds, has_full_tile = ["masked"], _has_full_tile(stage.mask, program)
            if stage.bias is None and has_full_tile:
                kinds.append("full")
            used.update(f"{kind}_merge" for kind in kinds)
            if engine.adds and has_full_tile:
                used.update(f"{kind}_add" for kind in kinds)
            if stage.sinks is None:
                used.update(kinds)
            if stage.average is not None:
                used.add("full")  # drawn keys
            if longest:
                used.add(packed_variant(stage.mask, longest) or "")
    return tuple(variant for variant in AttentionEngine.ALL_VARIANTS if variant in used)


def _has_full_tile(mask: Mask, program: Program) -> bool:
    """Whether a query block of the program sees all of some key tile.

    That happens within the first blocks or around a boundary of the mask, if at all. The last block of an input may
    have a single query: it sees a tile in full that a whole block of queries would not (a window of 17 keys over
    blocks of 16).
    """
    block, tile = program.block_size, program.key_tile
    near = {0, *(number // block for number in mask.boundaries())}
    step = max(1, tile // block)
    samples = {at + offset for at in near for offset in range(-step - 1, 2 * step + 2)}
    length = (max(samples) + 2 * step + 2) * block + 2 * tile
    return any(
        segment.full
        for at in sorted(samples)
        if at >= 0
        for end in (at * block + 1, length)
        for segment in row_segments(mask, at, block_size=block, key_tile=tile, length=end)
    )


def used_stock_variants(program: Program, engine: StockEngine) -> tuple[str, ...]:
    """The variants of ``engine`` that some stage may call at some length, in the order of ``VARIANTS``.

    A variant too many costs a few kilobytes, so a doubt (whether a narrow window ever has full keys) is a yes.
    """
    used: set[str] = set()
    for stage in program.attentions:
        if stage.engine != engine.name:
            continue
        band = band_of(stage.mask)
        if band is None or needs_mask(stage):
            used.add("masked")
            continue
        used.add("full")
        if (band.left, band.right) != (INFINITE, INFINITE):
            used.add("causal")
    return tuple(variant for variant in StockEngine.VARIANTS if variant in used)
