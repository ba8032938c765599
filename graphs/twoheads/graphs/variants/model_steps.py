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
from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.engines.fused import ModelEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, TokenwiseStage, Value
from twoheads.graphs.variants.whole_body import WholeBody, is_exact, whole_body
from twoheads.graphs.variants.window_steps import MASK, MOST_TILES, WINDOW

__all__ = ["MODEL", "MODEL_STEP", "BackWindow", "Kept", "ModelStage", "model_obstacle", "model_stage", "model_steps"]

MODEL = "model"
"""The lowering of a bundle that holds such an engine beside those of the tile program."""

MODEL_STEP = "model_step"
"""The name of the engine and of its stage."""

FLOAT = 4


@dataclass(frozen=True, slots=True)
class BackWindow:
    """The key tiles of one call under one mask, each of a block's size.

    Attributes:
        mask: Which keys a query sees; a causal band, perhaps with sink tokens.
        before: Tiles before the block's own.
        first: Whether the first tile of all stands before those, for its sink tokens.
        layers: How many layers have it.
    """

    mask: Mask
    before: int
    first: bool
    layers: int

    @property
    def tiles(self) -> int:
        """Key tiles of a call."""
        return self.first + self.before + 1

    def numbers(self, block: int) -> tuple[int | None, ...]:
        """The tiles that query block ``block`` sees, in order; ``None`` for one that it does not see.

        A block whose window reaches the first tile sees its sink tokens there.
        """
        sunk = (0 if block > self.before else None,) if self.first else ()
        return (*sunk, *(tile if tile >= 0 else None for tile in range(block - self.before, block + 1)))

    def like(self, block: int) -> int:
        """The first block whose mask over its tiles is that of ``block``."""
        return min(block, self.before + self.first)


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys or values of one layer, of which the last blocks are kept.

    Attributes:
        value: What they are.
        before: Blocks before the one being computed.
        first: Whether the first block of all is kept beside.
    """

    value: Value
    before: int
    first: bool

    @property
    def blocks(self) -> int:
        """Blocks that are held, that being computed among them."""
        return self.first + self.before + 1

    def numbers(self, block: int) -> tuple[int | None, ...]:
        """The blocks before ``block``, in the order of the ports; ``None`` for one that there is not."""
        sunk = (0 if block else None,) if self.first else ()
        return (*sunk, *(tile if tile >= 0 else None for tile in range(block - self.before, block)))

    def ports(self, at: int) -> tuple[str, ...]:
        """The engine's input ports for them, the ``at``-th that are kept, in the order of :class:`BackWindow`."""
        first = (f"first_{at}",) if self.first else ()
        return (*first, *(f"kept_{at}.{back}" for back in range(self.before, 0, -1)))


@dataclass(frozen=True, slots=True)
class ModelStage(TokenwiseStage):
    """One call of a :class:`ModelEngine` for every block, in order.

    Input ports are those of ``inputs``, a mask for each of ``windows``, and the tiles of each of ``kept`` that lie
    before the block; output ports those of ``outputs``, then the block's own tile of each of ``kept``.
    """

    windows: tuple[BackWindow, ...]
    kept: tuple[Kept, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The value of which each input port reads a block; ``""`` for masks and for what is kept."""
        tiles = sum(entry.blocks - 1 for entry in self.kept)
        return (*self.inputs, *("",) * (len(self.windows) + tiles))

    def kept_bytes(self, block_size: int) -> int:
        """Bytes beside the run's values: the rings, a block of zeros of every shape, and all masks."""
        rings = sum(entry.blocks * entry.value.nbytes(block_size) for entry in self.kept)
        zeros = {entry.value.shape: entry.value.nbytes(block_size) for entry in self.kept}
        masks = sum((window.like(window.before + 1) + 1) * window.tiles for window in self.windows)
        return rings + sum(zeros.values()) + masks * block_size * block_size * FLOAT


def model_stage(program: Program) -> ModelStage | None:
    """The stage of ``program`` that is one call a block, if it has one."""
    return next((stage for stage in program.body if isinstance(stage, ModelStage)), None)


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
    kept = _kept(program, body, windows)
    distinct = tuple(dict.fromkeys(windows.values()))
    stage = ModelStage(MODEL_STEP, MODEL_STEP, body.inputs, body.outputs, tuple(body.weights), distinct, kept)
    return body.in_one(stage, _engine(body, stage, windows))


def model_obstacle(program: Program) -> CompileError | None:
    """Why ``program`` has no such form: names the layer, what it does, and what to choose instead."""
    attentions = [stage for stage in program.body if isinstance(stage, AttentionStage)]
    for stage in attentions:
        found = _obstacle(program, stage)
        if found is not None:
            problem, fix = found
            return CompileError(stage.name, f"{problem}; the lowering {MODEL!r} knows causal windows only", fix)
    body = whole_body(program)
    if body is None:
        problem = "has no attention, moves rows between its attentions, or attends along several axes"
        return CompileError(program.name, f"{problem}: its body is no single step", "choose --lowering tile")
    outside = {*body.inputs, *(value.name for value in body.outputs)}
    for stage in attentions:
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
    tiles = 1 + _before(band, program.block_size)
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


def _before(band: Band, block_size: int) -> int:
    return -(-band.left // block_size)


def _windows(body: WholeBody) -> dict[str, BackWindow]:
    """The window of every attention, by its stage's name."""
    masks = {stage.name: stage.mask for stage in body.inside if isinstance(stage, AttentionStage)}
    made: dict[Mask, BackWindow] = {}
    for mask, layers in Counter(masks.values()).items():
        band = band_of(mask)
        if band is None:
            raise InternalError(f"{mask} is no window")
        made[mask] = BackWindow(mask, _before(band, body.program.block_size), band.sinks > 0, layers)
    return {name: made[mask] for name, mask in masks.items()}


def _kept(program: Program, body: WholeBody, windows: Mapping[str, BackWindow]) -> tuple[Kept, ...]:
    """The keys and values of all layers that look back, each as far as the longest window that reads it."""
    kept: dict[str, Kept] = {}
    for stage in body.inside:
        if not isinstance(stage, AttentionStage):
            continue
        window = windows[stage.name]
        for name in (stage.key, stage.value):
            known = kept.get(name, Kept(program.value(name), 0, False))
            kept[name] = replace(known, before=max(known.before, window.before), first=known.first or window.first)
    return tuple(entry for entry in kept.values() if entry.blocks > 1)


def _engine(body: WholeBody, stage: ModelStage, windows: Mapping[str, BackWindow]) -> ModelEngine:
    program, block = body.program, body.program.block_size
    values = {value.name: value for value in program.values()}
    inputs = [body.port(f"input_{at}", values[name]) for at, name in enumerate(stage.inputs)]
    inputs += [
        Port(f"{MASK}_{at}", "float32", (1, block, window.tiles * block)) for at, window in enumerate(stage.windows)
    ]
    outputs = [body.port(f"output_{at}", value) for at, value in enumerate(stage.outputs)]
    for at, entry in enumerate(stage.kept):
        inputs += [body.port(name, entry.value) for name in entry.ports(at)]
        outputs.append(body.port(f"kept_{at}", entry.value))
    return ModelEngine(
        name=MODEL_STEP,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        weights=tuple(body.weights.values()),
        flops=body.flops({name: window.tiles for name, window in windows.items()}),
        workspace=_workspace(body, windows),
    )


def _workspace(body: WholeBody, windows: Mapping[str, BackWindow]) -> int:
    """Of the widest attention, scores thrice and its keys and values joined; twice what the largest region moves."""
    block, widest = body.program.block_size, 0
    for stage in body.inside:
        engine = body.program.engine(stage.engine)
        if isinstance(engine, AttentionEngine):
            keys = windows[stage.name].tiles * block
            joined = engine.kv_num_heads * (engine.head_dim + engine.v_head_dim)
            widest = max(widest, (3 * engine.q_num_heads * block + joined) * keys * FLOAT)
    return widest + 2 * body.region_bytes
