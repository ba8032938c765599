"""Programs that differ in the width of their key tiles alone: more keys a call, fewer calls, the same sums."""

from __future__ import annotations

from dataclasses import replace

from twoheads.graphs.program.program import AttentionEngine, Program

__all__ = ["LARGEST_TILE", "other_key_tiles", "with_key_tile"]

LARGEST_TILE = 65536
"""Tokens of a key tile."""

FACTORS = (2, 4)
"""Of the block size: widths that a bundle offers beside its own. Of wider ones most is hidden or padding."""


def other_key_tiles(program: Program) -> tuple[int, ...]:
    """The further widths at which ``program`` computes the same up to rounding, ascending.

    There are none where not every engine of attention is a tile's, and where keys are sampled by tiles: other tiles
    are then another approximation.
    """
    engines = all(engine.kind in ("tokenwise", "attention", "scan", "experts") for engine in program.engines)
    attentions = program.attentions
    if not attentions or not engines or any(stage.average is not None for stage in attentions):
        return ()
    widths = (factor * program.block_size for factor in FACTORS)
    return tuple(width for width in widths if width != program.key_tile and width <= LARGEST_TILE)


def with_key_tile(program: Program, width: int) -> Program:
    """``program`` as it would have been compiled with key tiles of ``width`` tokens, a multiple of its block size.

    Of the lowering ``tile``.
    Regions know nothing of tiles, so that declarations of attention engines are all that changes.
    """
    if width == program.key_tile:
        return program
    engines = (
        replace(engine, key_tile=width) if isinstance(engine, AttentionEngine) else engine for engine in program.engines
    )
    return replace(program, key_tile=width, engines=tuple(engines))
