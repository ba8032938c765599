"""The stages of a program that one engine can hold together: its attentions and the token-wise regions around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.engines.fused import BlockEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Input,
    Program,
    SequenceStage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
    inputs_of,
    outputs_of,
)

__all__ = ["WholeBody", "is_exact", "whole_body"]


@dataclass(frozen=True, slots=True)
class WholeBody:
    """Neighbouring stages of a program's body that one engine can stand for.

    Attributes:
        program: Whose stages.
        first, end: Where in the body they begin and end.
        inside: The stages, in order.
    """

    program: Program
    first: int
    end: int
    inside: tuple[TokenwiseStage | AttentionStage, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that they read and do not define, in order of first use."""
        defined = self._defined()
        return tuple(dict.fromkeys(name for stage in self.inside for name in inputs_of(stage) if name not in defined))

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that they define for others."""
        program = self.program
        others = (*program.body[self.end :], *program.head)
        read = {name for stage in others for name in inputs_of(stage)} | {program.hidden, program.logits}
        return tuple(value for name, value in self._defined().items() if name in read)

    def _defined(self) -> dict[str, Value]:
        return {value.name: value for stage in self.inside for value in outputs_of(stage)}

    @property
    def weights(self) -> Mapping[str, Port]:
        """Every weight of the token-wise stages with a port that has its name."""
        return {name: port for stage in self.inside for name, port in _weights(self.program, stage)}

    def port(self, name: str, value: Value) -> Port:
        """A port ``name`` for a block of ``value``."""
        return Port(name, value.dtype, value.block_shape(self.program.block_size))

    def flops(self, tiles: Mapping[str, int]) -> int:
        """Of a block, with as many key tiles of a block's size for every attention, by the stage's name."""
        count = 0
        for stage in self.inside:
            engine = self.program.engine(stage.engine)
            if isinstance(engine, AttentionEngine):
                engine = replace(engine, key_tile=tiles[stage.name] * self.program.block_size)
            count += engine.flops if isinstance(engine, AttentionEngine | TokenwiseEngine) else 0
        return count

    @property
    def region_bytes(self) -> int:
        """What the largest token-wise region reads and writes in a block."""
        engines = (self.program.engine(stage.engine) for stage in self.inside)
        return max(
            (
                sum(port.nbytes for port in (*engine.inputs, *engine.outputs))
                for engine in engines
                if isinstance(engine, TokenwiseEngine)
            ),
            default=0,
        )

    def in_one(self, stage: TokenwiseStage, engine: BlockEngine, inputs: tuple[Input, ...] = ()) -> Program:
        """The program with ``stage`` of ``engine`` in place of these stages, and ``inputs`` beside its own."""
        program = self.program
        before, after = program.body[: self.first], program.body[self.end :]
        used = {other.engine for other in (*before, *after, *program.head) if isinstance(other, TokenwiseStage)}
        return replace(
            program,
            inputs=(*program.inputs, *inputs),
            engines=(engine, *(other for other in program.engines if other.name in used)),
            body=(*before, stage, *after),
        )


@lru_cache(maxsize=16)
def whole_body(program: Program) -> WholeBody | None:
    """The longest run of stages that holds all attentions and that one engine can stand for.

    All attentions must be exact, on the tokens' own axis, and of queries that see at least themselves. What lies before
    the first attention or behind the last one and moves rows, or computes row values, is no part of it.

    Returns:
        ``None`` where the program is not of that kind.
    """
    values = {value.name: value for value in program.values()}
    attends = [at for at, stage in enumerate(program.body) if isinstance(stage, AttentionStage)]
    if not attends:
        return None
    first, end = attends[0], attends[-1] + 1
    while first and _fits(program, program.body[first - 1], values):
        first -= 1
    while end < len(program.body) and _fits(program, program.body[end], values):
        end += 1
    inside = tuple(
        stage
        for stage in program.body[first:end]
        if not isinstance(stage, SequenceStage) and _fits(program, stage, values)
    )
    return WholeBody(program, first, end, inside) if len(inside) == end - first else None


def is_exact(program: Program, stage: AttentionStage) -> bool:
    """Whether ``stage`` attends to all that its mask shows, on an engine of the tile lowering."""
    engine = program.engine(stage.engine)
    return isinstance(engine, AttentionEngine) and stage.average is None


def _fits(
    program: Program, stage: TokenwiseStage | AttentionStage | SequenceStage, values: Mapping[str, Value]
) -> bool:
    """Whether the engine can hold ``stage``."""
    axes = {values[name].axis for name in inputs_of(stage)}
    if isinstance(stage, TokenwiseStage):
        return axes <= {TOKENS, None} and all(value.axis == TOKENS for value in stage.outputs)
    if not isinstance(stage, AttentionStage):
        return False
    return is_exact(program, stage) and axes == {TOKENS} and _sees_itself(stage.mask, program.block_size)


@lru_cache(maxsize=64)
def _sees_itself(mask: Mask, block_size: int) -> bool:
    at = np.arange(block_size, dtype=np.int64)
    return bool(np.broadcast_to(mask.dense(at, at), at.shape).all())


def _weights(program: Program, stage: TokenwiseStage | AttentionStage) -> Iterator[tuple[str, Port]]:
    engine = program.engine(stage.engine)
    if isinstance(stage, TokenwiseStage) and isinstance(engine, TokenwiseEngine):
        for name, port in zip(stage.weights, engine.weights, strict=True):
            yield name, replace(port, name=f"weights/{name}")
