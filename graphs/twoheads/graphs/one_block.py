"""A short input in one call: the body of a program as a single engine, for inputs of at most one block.

Where an input is no longer than a block, attention needs no tiles: one engine holds the token-wise regions and the
attentions between them, and its kernels use the run's threads, as there are no blocks to compute at the same time. Such
a run is an ordinary run of another program, whose body has one stage in place of many, so that schedule, stores, head
and report are the same code. The program is derived, never stored: a bundle holds the engine's file beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.fused_engine import BlockEngine
from twoheads.graphs.masks import Mask
from twoheads.graphs.port import Port
from twoheads.graphs.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Input,
    Program,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
    inputs_of,
    outputs_of,
)

__all__ = ["LENGTH", "ONE_BLOCK", "OneBlock", "looks_ahead", "one_block"]

ONE_BLOCK = "one_block"
"""The name of the engine and of its stage."""

LENGTH = "one_block.length"
"""The input that tells the engine how many of the block's tokens are no padding."""

FLOAT = np.dtype(np.float32).itemsize


@dataclass(frozen=True, slots=True)
class OneBlock:
    """A program for inputs of one block.

    Attributes:
        program: What runs.
        inside: The stages of the original program that its engine holds, in order.
    """

    program: Program
    inside: tuple[TokenwiseStage | AttentionStage, ...]

    @property
    def engine(self) -> BlockEngine:
        """The engine that holds them."""
        return next(engine for engine in self.program.engines if isinstance(engine, BlockEngine))

    @property
    def stage(self) -> TokenwiseStage:
        """The stage that calls it."""
        return next(
            stage for stage in self.program.body if isinstance(stage, TokenwiseStage) and stage.name == ONE_BLOCK
        )

    def arrays(
        self, given: Mapping[str, npt.NDArray[Any]], lengths: Mapping[str, int]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What a run reads: ``given``, the arrays of the original program's inputs, and the number of tokens."""
        return {**given, LENGTH: np.array([lengths[TOKENS]], np.int64)}

    def takes(self, lengths: Mapping[str, int]) -> bool:
        """Whether an input of these lengths, by axis, is no longer than a block."""
        return lengths.get(TOKENS, 0) <= self.program.block_size


@lru_cache(maxsize=16)
def one_block(program: Program) -> OneBlock | None:
    """The program that computes an input of one block of ``program`` in one call (and its head).

    All attentions must be exact, on the tokens' own axis, and of queries that see at least themselves. What lies before
    the first attention or behind the last one and moves rows, or computes row values, stays a stage of its own.

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
    if len(inside) < end - first:
        return None
    return OneBlock(_fused(program, first, end, inside, values), inside)


def _fits(program: Program, stage: Stage, values: Mapping[str, Value]) -> bool:
    """Whether the engine can hold ``stage``."""
    axes = {values[name].axis for name in inputs_of(stage)}
    if isinstance(stage, TokenwiseStage):
        return axes <= {TOKENS, None} and all(value.axis == TOKENS for value in stage.outputs)
    if not isinstance(stage, AttentionStage):
        return False
    engine = program.engine(stage.engine)
    exact = isinstance(engine, AttentionEngine) and engine.dtype == "float32" and stage.average is None
    return exact and axes == {TOKENS} and _sees_itself(stage.mask, program.block_size)


@lru_cache(maxsize=64)
def _sees_itself(mask: Mask, block_size: int) -> bool:
    at = np.arange(block_size, dtype=np.int64)
    return bool(np.broadcast_to(mask.dense(at, at), at.shape).all())


@lru_cache(maxsize=64)
def looks_ahead(mask: Mask, block_size: int) -> bool:
    """Whether some query of the first block sees a key behind it, so that padding must be hidden from it."""
    at = np.arange(block_size, dtype=np.int64)
    visible = np.broadcast_to(mask.dense(at[:, None], at[None, :]), (block_size, block_size))
    return bool(np.triu(visible, 1).any())


def _fused(
    program: Program,
    first: int,
    end: int,
    inside: tuple[TokenwiseStage | AttentionStage, ...],
    values: Mapping[str, Value],
) -> Program:
    """``program`` with one stage in place of ``body[first:end]``, which are ``inside``."""
    before, after = program.body[:first], program.body[end:]
    defined = {value.name: value for stage in inside for value in outputs_of(stage)}
    read = {name for stage in (*after, *program.head) for name in inputs_of(stage)} | {program.hidden, program.logits}
    inputs = dict.fromkeys(name for stage in inside for name in inputs_of(stage) if name not in defined)
    length = Input(Value(LENGTH, "int64", (1,)), "length", None, TOKENS)
    names = (*inputs, LENGTH)
    outputs = tuple(value for name, value in defined.items() if name in read)
    weights = dict(_weights(program, inside))
    known = {**values, LENGTH: length.value}
    engine = BlockEngine(
        name=ONE_BLOCK,
        inputs=tuple(_port(f"input_{at}", known[name], program) for at, name in enumerate(names)),
        outputs=tuple(_port(f"output_{at}", value, program) for at, value in enumerate(outputs)),
        weights=tuple(weights.values()),
        flops=sum(_flops(program, stage) for stage in inside),
        workspace=_workspace(program, inside),
    )
    used = {stage.engine for stage in (*before, *after, *program.head) if isinstance(stage, TokenwiseStage)}
    return replace(
        program,
        inputs=(*program.inputs, length),
        engines=(engine, *(engine for engine in program.engines if engine.name in used)),
        body=(*before, TokenwiseStage(ONE_BLOCK, ONE_BLOCK, names, outputs, tuple(weights)), *after),
    )


def _port(name: str, value: Value, program: Program) -> Port:
    return Port(name, value.dtype, value.block_shape(program.block_size))


def _weights(program: Program, stages: tuple[TokenwiseStage | AttentionStage, ...]) -> Iterator[tuple[str, Port]]:
    """Every weight of the token-wise stages with a port that has its name."""
    for stage in stages:
        engine = program.engine(stage.engine)
        if isinstance(stage, TokenwiseStage) and isinstance(engine, TokenwiseEngine):
            for name, port in zip(stage.weights, engine.weights, strict=True):
                yield name, replace(port, name=f"weights/{name}")


def _flops(program: Program, stage: TokenwiseStage | AttentionStage) -> int:
    engine = program.engine(stage.engine)
    if isinstance(engine, AttentionEngine):
        return replace(engine, key_tile=program.block_size).flops
    return engine.flops if isinstance(engine, TokenwiseEngine) else 0


def _workspace(program: Program, stages: tuple[TokenwiseStage | AttentionStage, ...]) -> int:
    """Scores thrice, masks and biases as the kernels add them, and twice what the largest region reads and writes."""
    block = program.block_size
    engines = [(stage, program.engine(stage.engine)) for stage in stages]
    heads = max((engine.q_num_heads for _, engine in engines if isinstance(engine, AttentionEngine)), default=0)
    added = {
        (stage.mask, stage.bias): engine.mask_heads
        for stage, engine in engines
        if isinstance(stage, AttentionStage) and isinstance(engine, AttentionEngine)
    }
    regions = [
        sum(port.nbytes for port in (*engine.inputs, *engine.outputs))
        for _, engine in engines
        if isinstance(engine, TokenwiseEngine)
    ]
    return (3 * heads + 2 * sum(added.values())) * block * block * FLOAT + 2 * max(regions, default=0)
