"""A layer in one call a block: windowed attention together with the token-wise region that reads it.

Under a window a block of queries sees a fixed number of key tiles. One engine takes them all, where the tile lowering
makes a call for each, and goes on with the region behind the attention. Tiles that lie outside of the sequence are
zeros, hidden by the mask, which is an input: blocks that see alike share it. As for a short input
(:mod:`twoheads.graphs.variants.one_block`), the program is derived and not stored: runs that share blocks among
inputs, are resumed or go to other machines keep to the tile program.

Every single input longer than a block takes it: who asks for this lowering wants few calls, each of which costs an
accelerator a launch. It is not cheaper otherwise: the first blocks of a window pay for tiles that are not there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import Full
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage, PortRead, TileWindow
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Program,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.variants.stage_run import FLOAT, MASK, StageRun

__all__ = ["MOST_TILES", "WINDOW", "window_steps"]


WINDOW = "window"
"""The lowering of a bundle that holds such engines beside those of the tile program."""

MOST_TILES = 4
"""Key tiles of one call at most. An engine holds the scores of all at once; longer windows take larger blocks."""


@lru_cache(maxsize=16)
def window_steps(program: Program) -> Program | None:
    """``program`` with one stage for every windowed attention and the region that reads it.

    Such an attention is exact, on the tokens' axis, under a window of finite reach on both sides that needs no more
    than :data:`MOST_TILES` tiles as large as blocks, without bias and learned sinks; and nothing but the next stage
    reads it.

    Returns:
        ``None`` where no attention is of that kind.
    """
    body: list[Stage] = []
    engines: dict[tuple[str, str, int, TileWindow], FusedEngine] = {}
    for at, stage in enumerate(program.body):
        if body and isinstance(body[-1], FusedStage) and stage in body[-1].inside:
            continue
        following = program.body[at + 1] if at + 1 < len(program.body) else None
        band = _band(program, stage, following)
        if band is None or not isinstance(stage, AttentionStage) or not isinstance(following, TokenwiseStage):
            body.append(stage)
        else:
            body.append(_step(StageRun(program, at, (stage, following)), stage, following, band, engines))
    if not engines:
        return None
    used = {stage.engine for stage in (*body, *program.head)}
    kept = (engine for engine in program.engines if engine.name in used)
    return replace(program, body=tuple(body), engines=(*kept, *engines.values()))


def _band(program: Program, stage: Stage, following: Stage | None) -> Band | None:
    """The window of ``stage``, where it and ``following`` can be one."""
    if not isinstance(stage, AttentionStage) or not isinstance(following, TokenwiseStage):
        return None
    engine = program.engine(stage.engine)
    plain = stage.bias is None and stage.sinks is None and stage.average is None
    if not plain or not isinstance(engine, AttentionEngine) or engine.dtype != "float32":
        return None
    readers = [other for other in (*program.body, *program.head) if stage.output.name in other.inputs]
    axes = {program.value(name).axis for name in stage.inputs} | {value.axis for value in following.outputs}
    once = following.inputs.count(stage.output.name) == 1
    if readers != [following] or not once or axes != {TOKENS} or engine.key_tile != engine.block_size:
        return None
    band = band_of(stage.mask)
    if band is None or band.sinks or not (0 <= band.left < INFINITE and 0 <= band.right < INFINITE):
        return None
    return band if sum(_reach(band, program.block_size)) < MOST_TILES else None


def _reach(band: Band, block_size: int) -> tuple[int, int]:
    """Key tiles before and behind a block's own that its queries may see."""
    return -(-band.left // block_size), -(-band.right // block_size)


def _step(
    run: StageRun,
    attention: AttentionStage,
    region: TokenwiseStage,
    band: Band,
    engines: dict[tuple[str, str, int, TileWindow], FusedEngine],
) -> FusedStage:
    before, after = _reach(band, run.program.block_size)
    window = TileWindow(attention.mask, before, after)
    others = tuple(name for name in region.inputs if name != attention.output.name)
    reads = (
        PortRead(attention.query),
        *(PortRead(name, offset) for name in (attention.key, attention.value) for offset in window.offsets),
        PortRead(""),
        *map(PortRead, others),
    )
    attended = region.inputs.index(attention.output.name)
    # Masks are inputs: engines of equal reach are the same.
    key = (attention.engine, region.engine, attended, replace(window, mask=Full()))
    if key not in engines:
        engines[key] = _engine(run, f"window_{len(engines)}", attention, region, window)
    inputs = (attention.query, attention.key, attention.value, *others)
    return FusedStage(
        attention.name,
        engines[key].name,
        inputs,
        region.outputs,
        region.weights,
        run.inside,
        reads,
        (window,),
        (),
        whole=False,
    )


def _engine(
    run: StageRun, name: str, attention: AttentionStage, region: TokenwiseStage, window: TileWindow
) -> FusedEngine:
    tile = run.program.engine_of(AttentionEngine, attention.engine)
    declared = run.program.engine_of(TokenwiseEngine, region.engine)
    (q, k, v), _ = tile.ports("full")
    tiles, block = range(window.tiles), run.program.block_size
    inputs = (
        replace(q, name="attention.q"),
        *(replace(k, name=f"attention.k_{at}") for at in tiles),
        *(replace(v, name=f"attention.v_{at}") for at in tiles),
        run.mask_port(MASK, window),
        *(port for port, name in zip(declared.inputs, region.inputs, strict=True) if name != attention.output.name),
    )
    scores = 3 * tile.q_num_heads * block * window.tiles * block * FLOAT
    flops = run.flops({attention.name: window.tiles})
    workspace = scores + 2 * run.region_bytes
    return FusedEngine(name, inputs, declared.outputs, declared.weights, flops, workspace, whole=False)
