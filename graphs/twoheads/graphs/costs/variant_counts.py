"""Which variants of its engine the rows of an attention stage call, and how often: the rule of runtime and planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.tiles import Segment
from twoheads.graphs.program.program import AttentionEngine, AttentionStage

__all__ = ["LEAST_ADDED_TILES", "anchor_tile", "sums_up", "variant_counts"]

LEAST_ADDED_TILES = 2
"""Tiles of a row for which adding pays: copying the queries at the start and dividing the sums at the end takes a tenth
of what one tile saves that is added instead of merged."""

LEAST_ADDED_TILES_NEAREST = 5
"""The same under a bias by distance, where scores are rounded together with how far they are from the anchor;
short rows are exact enough for that to show."""

Counts = npt.NDArray[np.int64]


def sums_up(stage: AttentionStage, engine: AttentionEngine, holds: Callable[[str], bool]) -> bool:
    """Whether long rows of ``stage`` are added up: the engine can, and ``holds`` says that the variants are there."""
    variants = AttentionEngine.ADD_VARIANTS if stage.bias is None else ("masked_add",)
    return engine.adds and all(holds(variant) for variant in variants)


def anchor_tile(segments: tuple[Segment, ...], *, nearest: bool = False) -> int | None:
    """The key tile that a row begins with to which it adds the others; ``None`` if it is too short for that.

    All queries of the row see all of the tile. It should be the one of the largest scores: the first, where models put
    their attention sinks, or, if ``nearest``, the last, where a bias falls with the distance.
    """
    if sum(segment.tiles for segment in segments) < (LEAST_ADDED_TILES_NEAREST if nearest else LEAST_ADDED_TILES):
        return None
    full = [segment for segment in segments if segment.full]
    if not full:
        return None
    return full[-1].stop - 1 if nearest else full[0].start


def variant_counts(stage: AttentionStage, rows: Sequence[tuple[Segment, ...]], *, adds: bool) -> dict[str, Counts]:
    """Calls ``[rows]`` of every variant, on the key tiles ``rows`` (drawn ones are not among them).

    The first tile of a row starts it, unless learned sinks do; the others are merged with what came before. In a row
    with an anchor that is the tile to start with, and the others are added up, if the stage ``adds``. A bias makes
    every tile a masked one.
    """
    full = np.array([sum(segment.tiles for segment in row if segment.full) for row in rows], np.int64)
    tiles = np.array([sum(segment.tiles for segment in row) for row in rows], np.int64)
    anchored = np.array(
        [adds and anchor_tile(row, nearest=stage.bias is not None) is not None for row in rows], np.bool_
    )
    begins_full = anchored | np.array([bool(row) and row[0].full for row in rows], np.bool_)
    if stage.bias is not None:
        full, begins_full = np.zeros_like(full), np.zeros_like(begins_full)
    starts = (tiles > 0).astype(np.int64)
    first = {"full": starts * begins_full, "masked": starts * ~begins_full}
    later = {"full": full - first["full"], "masked": tiles - full - first["masked"]}
    start = "" if stage.sinks is None else "_merge"
    counts = {f"{kind}{how}": np.zeros_like(tiles) for kind in first for how in ("", "_merge", "_add")}
    for kind in first:
        counts[kind + start] += first[kind]
        counts[f"{kind}_merge"] += later[kind] * ~anchored
        counts[f"{kind}_add"] += later[kind] * anchored
    return {variant: count for variant, count in counts.items() if count.any()}
