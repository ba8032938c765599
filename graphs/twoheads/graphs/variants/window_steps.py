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

from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.engines.fused import WindowEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Program,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    inputs_of,
)

__all__ = ["MASK", "MOST_TILES", "WINDOW", "WindowStage", "window_steps"]

WINDOW = "window"
"""The lowering of a bundle that holds such engines beside those of the tile program."""

MOST_TILES = 4
"""Key tiles of one call at most. An engine holds the scores of all at once; longer windows take larger blocks."""

MASK = "attention.mask"
"""The port of an engine's mask, ``[1, block, tiles * block]``, which is added to scores."""

FLOAT = 4


@dataclass(frozen=True, slots=True)
class WindowStage(TokenwiseStage):
    """One call of a :class:`WindowEngine` for every block. Inputs: query, key, value, the region's other inputs.

    Attributes:
        mask: Which keys a query sees; a band.
        before, after: Key tiles of a call before and behind the block's own.
    """

    mask: Mask
    before: int
    after: int

    @property
    def tiles(self) -> int:
        """Key tiles of a call."""
        return self.before + 1 + self.after

    def numbers(self, block: int, blocks: int) -> tuple[int | None, ...]:
        """The key tiles of query block ``block``, one of ``blocks``; ``None`` for those outside of the sequence."""
        tiles = range(block - self.before, block + self.after + 1)
        return tuple(tile if 0 <= tile < blocks else None for tile in tiles)

    @property
    def operands(self) -> tuple[str, ...]:
        """The value of which each input port of the engine reads a block, in order; ``""`` for the mask."""
        query, key, value, *others = self.inputs
        return (query, *(key,) * self.tiles, *(value,) * self.tiles, "", *others)


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
    engines: dict[tuple[str, str, int, int, int], WindowEngine] = {}
    stages = list(program.body)
    while stages:
        stage = stages.pop(0)
        band = _band(program, stage, stages[0] if stages else None)
        if band is None or not isinstance(stage, AttentionStage):
            body.append(stage)
            continue
        region = stages.pop(0)
        if isinstance(region, TokenwiseStage):  # as _band found it
            body.append(_step(program, stage, region, band, engines))
    if not engines:
        return None
    used = {stage.engine for stage in (*body, *program.head) if isinstance(stage, AttentionStage | TokenwiseStage)}
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
    readers = [other for other in (*program.body, *program.head) if stage.output.name in inputs_of(other)]
    axes = {program.value(name).axis for name in inputs_of(stage)} | {value.axis for value in following.outputs}
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
    program: Program,
    attention: AttentionStage,
    region: TokenwiseStage,
    band: Band,
    engines: dict[tuple[str, str, int, int, int], WindowEngine],
) -> WindowStage:
    attended = region.inputs.index(attention.output.name)
    others = tuple(name for name in region.inputs if name != attention.output.name)
    before, after = _reach(band, program.block_size)
    key = (attention.engine, region.engine, attended, before, after)
    if key not in engines:
        engines[key] = _engine(program, f"window_{len(engines)}", attention, region, before + 1 + after)
    inputs = (attention.query, attention.key, attention.value, *others)
    return WindowStage(
        attention.name, engines[key].name, inputs, region.outputs, region.weights, attention.mask, before, after
    )


def _engine(program: Program, name: str, attention: AttentionStage, region: TokenwiseStage, tiles: int) -> WindowEngine:
    tile, declared = program.engine(attention.engine), program.engine(region.engine)
    if not isinstance(tile, AttentionEngine) or not isinstance(declared, TokenwiseEngine):
        raise InternalError(f"stages {attention.name} and {region.name} have engines of other kinds")
    block, attended = program.block_size, region.inputs.index(attention.output.name)
    wide = replace(tile, key_tile=tiles * block)
    (q, k, v), _ = tile.ports("full")
    others = (port for at, port in enumerate(declared.inputs) if at != attended)
    inputs = (
        replace(q, name="attention.q"),
        *(replace(k, name=f"attention.k_{at}") for at in range(tiles)),
        *(replace(v, name=f"attention.v_{at}") for at in range(tiles)),
        Port(MASK, "float32", (1, block, tiles * block)),
        *others,
    )
    scores = 3 * tile.q_num_heads * block * tiles * block * FLOAT
    moved = 2 * sum(port.nbytes for port in (*declared.inputs, *declared.outputs))
    return WindowEngine(
        name=name,
        inputs=inputs,
        outputs=declared.outputs,
        weights=declared.weights,
        flops=declared.flops + wide.flops,
        workspace=scores + moved,
        attention=tile.name,
        region=declared.name,
        attended=attended,
    )
