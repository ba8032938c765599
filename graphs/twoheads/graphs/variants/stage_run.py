"""Neighbouring stages of a program that one engine can hold together: attentions, scans and the regions around them.

Mixtures of experts are no part of an engine. A run that extends sequences stage by stage holds them beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import resized_scan
from twoheads.graphs.program.fused import FusedStage, Kept, PortRead, TileWindow
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Engine,
    ExpertsEngine,
    ExpertsStage,
    Input,
    Program,
    ScanEngine,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)

__all__ = ["FLOAT", "MASK", "StageRun", "is_exact", "tile_window", "whole_body", "with_rows"]

MASK = "attention.mask"
"""What the ports of masks begin with, ``[1, block, tiles * block]``, which are added to scores."""

FLOAT = 4


@dataclass(frozen=True, slots=True)
class StageRun:
    """Neighbouring stages of a program's body that one engine can stand for.

    Attributes:
        program: Whose stages.
        first: Where in the body they begin.
        inside: The stages, in order.
    """

    program: Program
    first: int
    inside: tuple[TokenwiseStage | AttentionStage | ScanStage | ExpertsStage, ...]

    @property
    def end(self) -> int:
        """Where in the body they end."""
        return self.first + len(self.inside)

    @property
    def attentions(self) -> tuple[AttentionStage, ...]:
        """The attentions among them."""
        return tuple(stage for stage in self.inside if isinstance(stage, AttentionStage))

    @property
    def scans(self) -> tuple[tuple[ScanStage, ScanEngine], ...]:
        """The scans among them, with their engines."""
        stages = (stage for stage in self.inside if isinstance(stage, ScanStage))
        return tuple((stage, self.program.engine_of(ScanEngine, stage.engine)) for stage in stages)

    @property
    def mixtures(self) -> tuple[tuple[ExpertsStage, ExpertsEngine], ...]:
        """The mixtures of experts among them, with their engines; there are none in what one engine holds."""
        stages = (stage for stage in self.inside if isinstance(stage, ExpertsStage))
        return tuple((stage, self.program.engine_of(ExpertsEngine, stage.engine)) for stage in stages)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that they read and do not define, in order of first use."""
        defined = self._defined()
        return tuple(dict.fromkeys(name for stage in self.inside for name in stage.inputs if name not in defined))

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that they define for others."""
        program = self.program
        others = (*program.body[self.end :], *program.head)
        read = {name for stage in others for name in stage.inputs} | {program.hidden, program.logits}
        return tuple(value for name, value in self._defined().items() if name in read)

    def _defined(self) -> dict[str, Value]:
        return {value.name: value for stage in self.inside for value in stage.outputs}

    @property
    def regions(self) -> tuple[tuple[TokenwiseStage, TokenwiseEngine], ...]:
        """The token-wise stages among them, with their engines."""
        stages = (stage for stage in self.inside if isinstance(stage, TokenwiseStage))
        return tuple((stage, self.program.engine_of(TokenwiseEngine, stage.engine)) for stage in stages)

    @property
    def weights(self) -> Mapping[str, Port]:
        """Every weight of the token-wise stages and scans with a port that has its name."""
        bound = [*((stage.weights, engine.weights) for stage, engine in self.regions)]
        bound += [(stage.weights, engine.weight_ports) for stage, engine in self.scans]
        return {
            name: replace(port, name=f"weights/{name}")
            for names, ports in bound
            for name, port in zip(names, ports, strict=True)
        }

    def port(self, name: str, value: Value) -> Port:
        """A port ``name`` for a block of ``value``."""
        return Port(name, value.dtype, value.block_shape(self.program.block_size))

    def mask_port(self, name: str, window: TileWindow) -> Port:
        """A port ``name`` for the mask of a call under ``window``."""
        block = self.program.block_size
        return Port(name, "float32", (1, block, window.tiles * block))

    def flops(self, tiles: Mapping[str, int]) -> int:
        """Of a block, with as many key tiles of a block's size for every attention, by the stage's name."""
        engines = ((tiles[s.name], self.program.engine_of(AttentionEngine, s.engine)) for s in self.attentions)
        wide = (replace(engine, key_tile=count * self.program.block_size) for count, engine in engines)
        scans = sum(engine.call_flops() for _, engine in self.scans)
        return scans + sum(engine.flops for _, engine in self.regions) + sum(engine.call_flops() for engine in wide)

    @property
    def region_bytes(self) -> int:
        """What the largest token-wise region reads and writes in a block."""
        return max((sum(port.nbytes for port in (*e.inputs, *e.outputs)) for _, e in self.regions), default=0)

    def in_one(
        self,
        name: str,
        more: tuple[Input, ...] = (),
        windows: tuple[TileWindow, ...] = (),
        kept: tuple[Kept, ...] = (),
        *,
        tiles: Mapping[str, int],
        workspace: int,
    ) -> Program:
        """The program with all layers of a block in one call, in place of these stages.

        Args:
            name: Of the stage and of its engine.
            more: Inputs that the program has not; then come the masks and what is kept.
            windows: As of a :class:`FusedStage`.
            kept: Likewise.
            tiles: As for :meth:`flops`.
            workspace: As of a :class:`FusedEngine`.
        """
        program, added = self.program, [entry.value for entry in more]
        names = (*self.inputs, *(value.name for value in added))
        values = {value.name: value for value in (*program.values(), *added)}
        ports = {self.port(f"input_{at}", values[read]): PortRead(read) for at, read in enumerate(names)}
        ports |= {self.mask_port(f"{MASK}_{at}", window): PortRead("", window=at) for at, window in enumerate(windows)}
        for at, entry in enumerate(kept):
            for offset in entry.offsets:
                port = f"first_{at}" if offset is None else f"kept_{at}.{-offset}"
                ports[self.port(port, entry.value)] = PortRead(entry.value.name, offset)
        states = tuple(replace(engine.state, name=f"state_{at}") for at, (_, engine) in enumerate(self.scans))
        ports |= {port: PortRead("", state=at) for at, port in enumerate(states)}
        outputs = [self.port(f"output_{at}", value) for at, value in enumerate(self.outputs)]
        outputs += [self.port(f"kept_{at}", entry.value) for at, entry in enumerate(kept)]
        outputs += [replace(port, name=f"next_{port.name}") for port in states]
        weights, reads, flops = self.weights, tuple(ports.values()), self.flops(tiles)
        inside = tuple(held for held in self.inside if not isinstance(held, ExpertsStage))
        engine = FusedEngine(name, tuple(ports), tuple(outputs), tuple(weights.values()), flops, workspace, True)
        stage = FusedStage(name, name, names, self.outputs, tuple(weights), inside, reads, windows, kept, True, states)
        before, after = program.body[: self.first], program.body[self.end :]
        used = {other.engine for other in (*before, *after, *program.head)}
        return replace(
            program,
            inputs=(*program.inputs, *more),
            engines=(engine, *(other for other in program.engines if other.name in used)),
            body=(*before, stage, *after),
        )


def tile_window(mask: Mask, block_size: int) -> TileWindow | None:
    """The tiles, as large as blocks, that a block sees under ``mask``; ``None`` unless they are as many for all."""
    band = band_of(mask)
    if band is None or not (0 <= band.left < INFINITE and 0 <= band.right < INFINITE):
        return None
    before, after = (-(-reach // block_size) for reach in (band.left, band.right))
    return TileWindow(mask, before, after, first=band.sinks > 0)


@lru_cache(maxsize=16)
def whole_body(program: Program, *, mixtures: bool = False) -> StageRun | None:
    """The longest run of stages that holds all attentions and scans and that one engine can stand for.

    All attentions must be exact, on the tokens' own axis, and of queries that see at least themselves. What lies before
    the first of them or behind the last one and moves rows, or computes row values, is no part of it.

    Args:
        program: Whose body.
        mixtures: Whether mixtures of experts may be among them, so that it is no engine that holds them.

    Returns:
        ``None`` where the program is not of that kind.
    """
    values = {value.name: value for value in program.values()}
    attends = [at for at, stage in enumerate(program.body) if stage.tiled or stage.chained]
    if not attends:
        return None
    first, end = attends[0], attends[-1] + 1

    def fits(stage: Stage) -> bool:
        if isinstance(stage, ExpertsStage):
            return mixtures and stage.output.axis == TOKENS
        return _fits(program, stage, values)

    while first and fits(program.body[first - 1]):
        first -= 1
    while end < len(program.body) and fits(program.body[end]):
        end += 1
    stages = program.body[first:end]
    inside = tuple(stage for stage in stages if not isinstance(stage, SequenceStage) and fits(stage))
    return StageRun(program, first, inside) if len(inside) == end - first else None


def is_exact(program: Program, stage: AttentionStage) -> bool:
    """Whether ``stage`` attends to all that its mask shows, by products alone, on an engine of the tile lowering."""
    engine = program.engine(stage.engine)
    return isinstance(engine, AttentionEngine) and not engine.distances and stage.average is None


def _fits(program: Program, stage: Stage, values: Mapping[str, Value]) -> bool:
    """Whether the engine can hold ``stage``."""
    axes = {values[name].axis for name in stage.inputs}
    if isinstance(stage, TokenwiseStage):
        return axes <= {TOKENS, None} and all(value.axis == TOKENS for value in stage.outputs)
    if isinstance(stage, ScanStage):
        return axes == {TOKENS}
    if not isinstance(stage, AttentionStage):
        return False
    return is_exact(program, stage) and axes == {TOKENS} and _sees_itself(stage.mask, program.block_size)


@lru_cache(maxsize=64)
def _sees_itself(mask: Mask, block_size: int) -> bool:
    at = np.arange(block_size, dtype=np.int64)
    return bool(np.broadcast_to(mask.dense(at, at), at.shape).all())


@lru_cache(maxsize=16)
def with_rows(program: Program, rows: int) -> Program:
    """``program``, whose attentions are tiled, with engines whose blocks are of ``rows`` tokens."""
    values = {value.name: value for value in program.values()}
    sized: dict[str, Engine] = {
        engine.name: replace(engine, block_size=rows, key_tile=rows) for engine in program.tile_engines
    }
    scans = (engine for engine in program.engines if isinstance(engine, ScanEngine))
    mixed = (engine for engine in program.engines if isinstance(engine, ExpertsEngine))
    sized |= {engine.name: engine for engine in mixed}  # which has files for few rows itself
    sized |= {engine.name: resized_scan(engine, rows) for engine in scans}
    for stage, engine in reversed(program.bindings):  # the first stage that an engine has decides
        read = zip(engine.inputs, stage.inputs, strict=True)
        made = zip(engine.outputs, stage.outputs, strict=True)
        sized[engine.name] = replace(
            engine,
            inputs=tuple(replace(port, shape=values[name].block_shape(rows)) for port, name in read),
            outputs=tuple(replace(port, shape=value.block_shape(rows)) for port, value in made),
            flops=engine.flops * rows // program.block_size,
        )
    engines = tuple(sized[engine.name] for engine in program.engines)
    return replace(program, block_size=rows, key_tile=rows, engines=engines)
