"""The schedule: a block program expanded for one length ``N``, in calls, operations, bytes and memory.

Planner, executor, verifier and plots all read the schedule; none re-derives it. Making one costs time proportional to
the rows and segments of each *distinct* mask, not to the tiles: thirty equal layers are counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from twoheads.graphs.average import Average, average_formula, average_tally, sampled_row
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.formulas import Formula, attention_formula, symbols
from twoheads.graphs.maskless_costs import AttentionCosts, oracle_costs, stock_costs
from twoheads.graphs.masks import Mask
from twoheads.graphs.program import (
    AttentionEngine,
    AttentionStage,
    OracleEngine,
    Port,
    Program,
    SequenceStage,
    Stage,
    StockEngine,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.tiles import Segment, row_segments

__all__ = ["PROCESS_BYTES", "MemoryPlan", "Schedule", "StagePlan", "make_schedule"]

PROCESS_BYTES = 120_000_000
"""Resident bytes of the interpreter, NumPy, ONNX Runtime and its open sessions, beside what is counted elsewhere.

Imports alone take 59 MB on Linux (measured); the rest is an allowance for sessions and allocators."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage costs for one length.

    Attributes:
        name, engine: Of the stage and of the engine it calls; of a sequence stage, its operator.
        kind: ``tokenwise``, ``attention`` or ``sequence`` (no calls).
        calls: Engine calls, counted; ``formula`` derives the same number independently.
        flops: Floating-point operations of the matrix products of all calls.
        bytes_moved: Bytes of the ports of all calls, plus the weights of a token-wise engine once for each call.
        outputs_bytes: Bytes of the values the stage defines, padded to whole blocks or key tiles.
    """

    name: str
    kind: str
    engine: str
    calls: int
    formula: Formula
    flops: int
    bytes_moved: int
    outputs_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Peak memory in bytes, by what holds it.

    Attributes:
        values: The most token values that are alive at the same time. What the head computes is not among them: it
            goes from block to block to its reader.
        weights: Every weight in use, twice: once mapped from the bundle, once as the backend packs it. (A table that
            is only gathered from is not packed, but that is not known here.)
        workspace: Intermediate arrays of the largest engine, in every worker.
        process: Interpreter and libraries.
    """

    values: int
    weights: int
    workspace: int
    process: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.values + self.weights + self.workspace + self.process


@dataclass(frozen=True, slots=True)
class Schedule:
    """A program expanded for one length and one output.

    Attributes:
        program: What is expanded.
        length: Tokens, ``N``.
        blocks: Query blocks, ``n``.
        output: ``hidden``, ``logits``, ``last`` or ``embedding``.
        positions: Rows of the head; 0 if the head does not run.
        stages: The stages that ``output`` needs, in order.
        formula: The total of ``formula_calls`` as text.
        memory: The parts of ``peak_bytes``.
        release_after: For every needed body stage, the values that no later stage reads.
    """

    program: Program
    length: int
    blocks: int
    output: str
    positions: int
    stages: tuple[StagePlan, ...]
    formula: str
    memory: MemoryPlan
    release_after: dict[str, tuple[str, ...]]

    @property
    def engine_calls(self) -> int:
        """Engine calls of all stages, counted."""
        return sum(stage.calls for stage in self.stages)

    @property
    def formula_calls(self) -> int:
        """Engine calls of all stages by the closed formulas."""
        return sum(stage.formula.calls for stage in self.stages)

    @property
    def rounds(self) -> int:
        """Rounds of calls that depend on each other, ``O(L)``: calls of one stage need none of that stage's results."""
        return len(self.stages)

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes_moved(self) -> int:
        """Bytes into and out of engines, all stages."""
        return sum(stage.bytes_moved for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of a run, in bytes."""
        return self.memory.total

    def rows(self, stage: AttentionStage) -> Iterator[tuple[int, tuple[Segment, ...]]]:
        """The query blocks of an attention stage, each with its non-empty key tiles; without those of drawn keys."""
        sizes = (self.program.block_size, self.program.key_tile, self.length)
        rows = _rows(stage.mask, *sizes) if stage.average is None else _exact_rows(stage.mask, stage.average, *sizes)
        yield from enumerate(rows)


def make_schedule(
    program: Program, length: int, *, output: str | None = None, positions: int | None = None, workers: int = 2
) -> Schedule:
    """Expands ``program`` for an input of ``length`` tokens.

    Args:
        program: The block program.
        length: Tokens of the input, 1 or more.
        output: ``hidden``, ``logits`` (of ``positions``), ``last`` (the last position's logits) or ``embedding``;
            ``None`` for the program's default.
        positions: Rows for which ``logits`` are wanted; ``None`` for all. The other outputs ignore it.
        workers: Engine calls that run at the same time, for the workspace.

    Raises:
        InputError: The model can't take that length or does not give that output.
    """
    output = output or program.default_output
    _check(program, length, output, positions)
    heads = {"logits": length if positions is None else positions, "last": 1}.get(output, 0)
    body, head = needed_stages(program, output)
    expansion = _Expansion(program, length, heads)
    stages = (*(expansion.plan(stage) for stage in body), *(expansion.plan(stage, head=True) for stage in head))
    released, values = expansion.liveness(body, {program.hidden})
    workspace = workers * max((expansion.transient(stage) for stage in (*body, *head)), default=0)
    weights = 2 * sum(expansion.weights((*body, *head)).values())
    return Schedule(
        program=program,
        length=length,
        blocks=expansion.blocks,
        output=output,
        positions=heads,
        stages=stages,
        formula=_total(stages, symbols(block_size=program.block_size, key_tile=program.key_tile, length=length)),
        memory=MemoryPlan(values, weights, workspace, PROCESS_BYTES),
        release_after=released,
    )


def _check(program: Program, length: int, output: str, positions: int | None) -> None:
    known = ["hidden", *(["logits", "last"] if program.logits else []), *(["embedding"] if program.pooling else [])]
    if output not in known:
        raise InputError("output", f"{program.name} does not give {output!r}", f"ask for {' or '.join(known)}")
    if length < 1:
        raise InputError("length", f"is {length}", "give an input of 1 token or more")
    limit = program.max_length
    if limit is not None and length > limit.length:
        raise InputError(
            "length",
            f"{length} tokens exceed what the model {program.name} itself can take: {limit.reason} ends at "
            f"{limit.length} (the engines would run any length)",
            f"give {limit.length} tokens or fewer",
        )
    if output == "logits" and positions is not None and positions < 1:
        raise InputError("positions", f"{positions} positions are asked for", "ask for 1 position or more")


def needed_stages(program: Program, output: str) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The body and head stages that ``output`` depends on, in program order."""
    wanted = {program.hidden}
    if output in ("logits", "last") and program.logits is not None:
        wanted.add(program.logits)
    head = _walk_back(program.head, wanted) if len(wanted) > 1 else ()
    return _walk_back(program.body, wanted), head


def _walk_back(stages: tuple[Stage, ...], wanted: set[str]) -> tuple[Stage, ...]:
    """Those of ``stages`` that define a wanted value; what they read becomes wanted too."""
    needed: list[Stage] = []
    for stage in reversed(stages):
        if any(value.name in wanted for value in outputs_of(stage)):
            needed.append(stage)
            wanted.update(inputs_of(stage))
    return tuple(reversed(needed))


def inputs_of(stage: Stage) -> tuple[str, ...]:
    """Names of the values that a stage reads."""
    return (stage.query, stage.key, stage.value) if isinstance(stage, AttentionStage) else stage.inputs


def outputs_of(stage: Stage) -> tuple[Value, ...]:
    """The values that a stage defines."""
    return stage.outputs if isinstance(stage, TokenwiseStage) else (stage.output,)


@dataclass(frozen=True, slots=True)
class _Tally:
    """Tiles of one attention: all, partial ones, and those that are merged with nothing, the first of each block."""

    tiles: int
    partial: int
    rows: int


@lru_cache(maxsize=16)
def _rows(mask: Mask, block_size: int, key_tile: int, length: int) -> tuple[tuple[Segment, ...], ...]:
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    return tuple(row_segments(mask, block, **sizes) for block in range(-(-length // block_size)))


@lru_cache(maxsize=16)
def _exact_rows(
    mask: Mask, average: Average, block_size: int, key_tile: int, length: int
) -> tuple[tuple[Segment, ...], ...]:
    sizes = {"block_size": block_size, "key_tile": key_tile, "length": length}
    return tuple(sampled_row(mask, average, block, **sizes).exact for block in range(-(-length // block_size)))


@lru_cache(maxsize=64)
def _sampled_tally(mask: Mask, average: Average, block_size: int, key_tile: int, length: int) -> _Tally:
    found = average_tally(mask, average, block_size=block_size, key_tile=key_tile, length=length)
    return _Tally(found.exact + found.drawn, found.partial, found.rows + found.drawn)


@lru_cache(maxsize=64)
def _tally(mask: Mask, block_size: int, key_tile: int, length: int) -> _Tally:
    rows = _rows(mask, block_size, key_tile, length)
    return _Tally(
        tiles=sum(segment.tiles for row in rows for segment in row),
        partial=sum(not segment.full for row in rows for segment in row),
        rows=sum(bool(row) for row in rows),
    )


class _Expansion:
    """Costs of single stages for one length."""

    def __init__(self, program: Program, length: int, positions: int) -> None:
        self.program = program
        self.length = length
        self.blocks = -(-length // program.block_size)
        self.tiles = -(-length // program.key_tile)
        self.head_blocks = -(-positions // program.block_size)
        self.engines = {engine.name: engine for engine in program.engines}
        attentions = [stage for stage in program.body if isinstance(stage, AttentionStage)]
        self.tiled = {name for stage in attentions for name in (stage.key, stage.value)}

    def plan(self, stage: Stage, *, head: bool = False) -> StagePlan:
        """The costs of ``stage``."""
        if isinstance(stage, AttentionStage):
            return self._plan_attention(stage)
        if isinstance(stage, SequenceStage):
            outputs_bytes = self.nbytes(stage.output)
            return StagePlan(stage.name, "sequence", stage.operator, 0, Formula("0", 0), 0, 0, outputs_bytes)
        engine = self._tokenwise(stage.engine)
        calls = self.head_blocks if head else self.blocks
        return StagePlan(
            name=stage.name,
            kind="tokenwise",
            engine=engine.name,
            calls=calls,
            formula=Formula(f"h = {calls}" if head else f"n = {calls}", calls),
            flops=calls * engine.flops,
            bytes_moved=calls * _nbytes((*engine.inputs, *engine.outputs, *engine.weights)),
            outputs_bytes=sum(
                value.nbytes(calls * self.program.block_size) if head else self.nbytes(value) for value in stage.outputs
            ),
        )

    def _plan_attention(self, stage: AttentionStage) -> StagePlan:
        engine = self._attention(stage.engine)
        if isinstance(engine, AttentionEngine):
            costs = self._tile_costs(stage, engine)
        elif isinstance(engine, OracleEngine):
            costs = oracle_costs(stage, engine, self.length)
        else:
            costs = stock_costs(stage, engine, self.length)
        return StagePlan(
            name=stage.name,
            kind="attention",
            engine=engine.name,
            calls=costs.calls,
            formula=costs.formula,
            flops=costs.flops,
            bytes_moved=costs.bytes_moved,
            outputs_bytes=self.nbytes(stage.output),
        )

    def _tile_costs(self, stage: AttentionStage, engine: AttentionEngine) -> AttentionCosts:
        sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile, "length": self.length}
        average = stage.average
        tally = _tally(stage.mask, **sizes) if average is None else _sampled_tally(stage.mask, average, **sizes)
        masked = tally.tiles if stage.bias else tally.partial
        merges = tally.tiles - (0 if stage.sinks else tally.rows)
        plain = _nbytes(_ports(engine, "full"))
        mask, previous = (_nbytes(_ports(engine, variant)) - plain for variant in ("masked", "full_merge"))
        return AttentionCosts(
            calls=tally.tiles,
            formula=(
                attention_formula(stage.mask, **sizes)
                if average is None
                else average_formula(stage.mask, average, **sizes)
            ),
            flops=tally.tiles * engine.flops,
            bytes_moved=tally.tiles * plain + masked * mask + merges * previous,
        )

    def nbytes(self, value: Value) -> int:
        """Bytes of a stored value: whole key tiles where an attention reads it as keys or values, else whole blocks."""
        if value.name in self.tiled:
            return value.nbytes(self.tiles * self.program.key_tile)
        return value.nbytes(self.blocks * self.program.block_size)

    def liveness(self, body: tuple[Stage, ...], kept: set[str]) -> tuple[dict[str, tuple[str, ...]], int]:
        """Which values die after which stage, and the most bytes alive at once.

        Inputs are alive from the start, other values from the stage that defines them, all until their last reader;
        ``kept`` values stay.
        """
        alive = {entry.value.name: self.nbytes(entry.value) for entry in self.program.inputs}
        last_reader = {name: stage.name for stage in body for name in inputs_of(stage)}
        released: dict[str, tuple[str, ...]] = {}
        peak = sum(alive.values())
        for stage in body:
            defined = {value.name: self.nbytes(value) for value in outputs_of(stage)}
            alive |= defined
            peak = max(peak, sum(alive.values()))
            ending = [name for name in (*inputs_of(stage), *defined) if last_reader.get(name, stage.name) == stage.name]
            released[stage.name] = tuple(name for name in dict.fromkeys(ending) if name not in kept)
            for name in released[stage.name]:
                del alive[name]
        return released, peak

    def transient(self, stage: Stage) -> int:
        """Bytes that one worker needs while it runs the stage's engine: an estimate.

        Attention holds scores, probabilities and one more array of their shape; a token-wise engine about twice its
        inputs and outputs.
        """
        if isinstance(stage, AttentionStage):
            engine = self._attention(stage.engine)
            return 3 * engine.q_num_heads * engine.block_size * engine.key_tile * np.dtype(np.float32).itemsize
        if isinstance(stage, SequenceStage):
            return 0
        tokenwise = self._tokenwise(stage.engine)
        return 2 * _nbytes((*tokenwise.inputs, *tokenwise.outputs))

    def weights(self, stages: tuple[Stage, ...]) -> dict[str, int]:
        """Bytes of every weight that the stages bind to ports.

        A bias's and the learned sinks' few numbers a head are bound to no port, their size is not known here.
        """
        sizes: dict[str, int] = {}
        for stage in stages:
            if isinstance(stage, TokenwiseStage):
                ports = self._tokenwise(stage.engine).weights
                sizes |= {name: port.nbytes for name, port in zip(stage.weights, ports, strict=True)}
        return sizes

    def _tokenwise(self, name: str) -> TokenwiseEngine:
        engine = self.engines.get(name)
        if not isinstance(engine, TokenwiseEngine):
            raise InternalError(f"program {self.program.name} has no token-wise engine {name!r}")
        return engine

    def _attention(self, name: str) -> AttentionEngine | StockEngine | OracleEngine:
        engine = self.engines.get(name)
        if not isinstance(engine, AttentionEngine | StockEngine | OracleEngine):
            raise InternalError(f"program {self.program.name} has no attention engine {name!r}")
        return engine


def _ports(engine: AttentionEngine, variant: str) -> tuple[Port, ...]:
    inputs, outputs = engine.ports(variant)
    return (*inputs, *outputs)


def _nbytes(ports: tuple[Port, ...]) -> int:
    return sum(port.nbytes for port in ports)


def _total(stages: tuple[StagePlan, ...], legend: str) -> str:
    """The sum over stages as text, equal stages counted together."""
    groups = Counter((stage.kind, stage.formula) for stage in stages)
    products = [f"{times} x {kind} [{formula.text}]" for (kind, formula), times in groups.items()]
    calls = sum(times * formula.calls for (_, formula), times in groups.items())
    return f"{' + '.join(products)} = {calls}, with {legend}"
