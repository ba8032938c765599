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

from twoheads.graphs.masks.expressions import Full
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage, PortRead, TileWindow
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Program,
    Stage,
    TokenwiseStage,
)
from twoheads.graphs.variants.stage_run import FLOAT, MASK, StageRun, tile_window

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
        pair = program.body[at : at + 2]
        window = _window(program, pair)
        body.append(stage if window is None else _step(program, at, window, engines))
    if not engines:
        return None
    used = {stage.engine for stage in (*body, *program.head)}
    kept = (engine for engine in program.engines if engine.name in used)
    return replace(program, body=tuple(body), engines=(*kept, *engines.values()))


def _window(program: Program, pair: tuple[Stage, ...]) -> TileWindow | None:
    """What the first of ``pair`` sees, where the two can be one."""
    match pair:
        case (AttentionStage() as stage, TokenwiseStage() as following):
            pass
        case _:
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
    window = tile_window(stage.mask, program.block_size)
    return window if window is not None and not window.first and window.tiles <= MOST_TILES else None


def _step(
    program: Program, at: int, window: TileWindow, engines: dict[tuple[str, str, int, TileWindow], FusedEngine]
) -> FusedStage:
    """The stage in place of two, from ``at`` on; its engine is among ``engines`` then."""
    inside = (stage for stage in program.body[at : at + 2] if isinstance(stage, TokenwiseStage | AttentionStage))
    run = StageRun(program, at, tuple(inside))
    (attention,), ((region, declared),) = run.attentions, run.regions
    tile, block = run.program.engine_of(AttentionEngine, attention.engine), run.program.block_size
    (q, k, v), _ = tile.ports("full")
    ports = {replace(q, name="attention.q"): PortRead(attention.query)}
    for port, name in ((k, attention.key), (v, attention.value)):
        for at, offset in enumerate(window.offsets):
            ports[replace(port, name=f"attention.{port.name}_{at}")] = PortRead(name, offset)
    ports[run.mask_port(MASK, window)] = PortRead("")
    attended = region.inputs.index(attention.output.name)
    others = dict(zip(declared.inputs, region.inputs, strict=True))
    del others[declared.inputs[attended]]
    ports |= {port: PortRead(name) for port, name in others.items()}
    # Masks are inputs: engines of equal reach are the same.
    key = (attention.engine, region.engine, attended, replace(window, mask=Full()))
    if key not in engines:
        workspace = 3 * tile.q_num_heads * block * window.tiles * block * FLOAT + 2 * run.region_bytes
        flops = run.flops({attention.name: window.tiles})
        engines[key] = FusedEngine(
            f"window_{len(engines)}", tuple(ports), declared.outputs, declared.weights, flops, workspace, whole=False
        )
    return FusedStage(
        attention.name,
        engines[key].name,
        (attention.query, attention.key, attention.value, *others.values()),
        region.outputs,
        region.weights,
        (attention, region),
        tuple(ports.values()),
        (window,),
        (),
        whole=False,
    )
