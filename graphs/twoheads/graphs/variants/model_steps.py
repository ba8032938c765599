"""A block of the whole model in one call: for models whose every attention looks back through a window.

A block depends, in every layer, on its own tokens and on the keys and values of the blocks that the layer's window
reaches back to. One engine takes those and gives the block's own keys and values beside its hidden states, so a run of
``N`` tokens is ``ceil(N / M)`` calls, one after the other: each needs the keys of the last. What is parallel is inside
of a call, whose kernels use the run's threads. Keys and values are kept in rings of as many blocks as the longest
window of a layer reaches, so that their memory does not depend on ``N``. Where a window has sink tokens, the first
block's keys and values are kept as well.

Like the program for short inputs (:mod:`twoheads.graphs.variants.one_block`) it is derived and not stored: runs that
share blocks among inputs, are resumed or go to other machines keep to the tile program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.fused import Kept, TileWindow
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program
from twoheads.graphs.variants.stage_run import FLOAT, StageRun, is_exact, tile_window, whole_body
from twoheads.graphs.variants.window_steps import MOST_TILES, WINDOW

__all__ = ["MODEL", "MODEL_STEP", "model_obstacle", "model_steps"]


MODEL = "model"
"""The lowering of a bundle that holds such an engine beside those of the tile program."""

MODEL_STEP = "model_step"
"""The name of the engine and of its stage."""


@lru_cache(maxsize=16)
def model_steps(program: Program) -> Program | None:
    """``program`` with one such stage in place of all its attentions and the regions around them.

    Returns:
        ``None`` where :func:`model_obstacle` names a reason.
    """
    body = whole_body(program)
    if body is None or model_obstacle(program) is not None:
        return None
    windows = _windows(body)
    return body.in_one(
        MODEL_STEP,
        windows=tuple(dict.fromkeys(windows.values())),
        kept=_kept(body, windows),
        tiles={name: window.tiles for name, window in windows.items()},
        workspace=_workspace(body, windows),
    )


def model_obstacle(program: Program) -> CompileError | None:
    """Why ``program`` has no such form: names the layer, what it does, and what to choose instead."""
    for stage in program.attentions:
        found = _obstacle(program, stage)
        if found is not None:
            problem, fix = found
            return CompileError(stage.name, f"{problem}; the lowering {MODEL!r} knows causal windows only", fix)
    body = whole_body(program)
    if body is None:
        problem = "has no attention and no scan, moves rows between its attentions, or attends along several axes"
        return CompileError(program.name, f"{problem}: its body is no single step", "choose --lowering tile")
    outside = {*body.inputs, *(value.name for value in body.outputs)}
    for stage in program.attentions:
        if outside & {stage.key, stage.value}:
            problem = "attends to keys that stages outside of the layers make or read"
            return CompileError(stage.name, problem, "choose --lowering tile")
    return None


def _obstacle(program: Program, stage: AttentionStage) -> tuple[str, str] | None:
    """What ``stage`` does that no window of few tiles does, and the remedy."""
    fix = f"choose --lowering tile, or {WINDOW}, which leaves such layers as they are"
    if stage.bias is not None or stage.sinks is not None or not is_exact(program, stage):
        return "attends with a bias, learned sinks or sampled keys", fix
    band = band_of(stage.mask)
    if band is None or band.left == INFINITE:
        known = {"causal": "all earlier tokens", "full": "all tokens"}
        seen = known.get(str(stage.mask), f"what is no window ({stage.mask})")
        return f"attends to {seen}", f"{fix}; or impose a window: --attention window:1024"
    if band.left < 0 or band.right != 0:
        return f"attends to tokens behind its own ({stage.mask})", fix
    if band.sinks > program.block_size:
        return f"attends to {band.sinks} sink tokens, more than a block", f"choose --block-size {_eight(band.sinks)}"
    window = tile_window(stage.mask, program.block_size)
    tiles = 0 if window is None else window.before + 1
    if tiles > MOST_TILES:
        size = _eight(-(-band.left // (MOST_TILES - 1)))
        return (
            f"attends to {tiles} blocks at once, more than {MOST_TILES} ({stage.mask})",
            f"choose --block-size {size} or larger",
        )
    return None


def _eight(tokens: int) -> int:
    """The block size, a multiple of 8, that is at least ``tokens``."""
    return -(-tokens // 8) * 8


def _windows(body: StageRun) -> dict[str, TileWindow]:
    """The window of every attention, by its stage's name."""
    layers = Counter(stage.mask for stage in body.attentions)
    found = {mask: tile_window(mask, body.program.block_size) for mask in layers}
    made = {mask: replace(window, layers=layers[mask]) for mask, window in found.items() if window is not None}
    return {stage.name: made[stage.mask] for stage in body.attentions}


def _kept(body: StageRun, windows: Mapping[str, TileWindow]) -> tuple[Kept, ...]:
    """The keys and values of all layers that look back, each as far as the longest window that reads it."""
    kept: dict[str, Kept] = {}
    for stage in body.attentions:
        window = windows[stage.name]
        for name in (stage.key, stage.value):
            known = kept.get(name, Kept(body.program.value(name), 0, False))
            kept[name] = replace(known, before=max(known.before, window.before), first=known.first or window.first)
    return tuple(entry for entry in kept.values() if entry.blocks > 1)


def _workspace(body: StageRun, windows: Mapping[str, TileWindow]) -> int:
    """Of the widest scan or attention (scores thrice, keys, values), and twice what the largest region moves."""
    block, widest = body.program.block_size, 0
    for stage in body.attentions:
        engine = body.program.engine_of(AttentionEngine, stage.engine)
        joined = engine.kv_num_heads * (engine.head_dim + engine.v_head_dim)
        keys = windows[stage.name].tiles * block
        widest = max(widest, (3 * engine.q_num_heads * block + joined) * keys * FLOAT)
    widest = max([widest, *(engine.workspace for _, engine in body.scans)])
    return widest + 2 * body.region_bytes
