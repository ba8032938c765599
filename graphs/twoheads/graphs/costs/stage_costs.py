"""What single stages of a program cost for one input: calls, operations, bytes, and how long their values live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from twoheads.graphs.costs.call_formulas import Formula, attention_formula, cross_formula
from twoheads.graphs.costs.maskless_costs import AttentionCosts, oracle_costs, stock_costs
from twoheads.graphs.costs.sampling import average_formula, average_tally
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Full, Mask
from twoheads.graphs.masks.sampling import Average, sampled_row
from twoheads.graphs.masks.tiles import Segment, row_segments
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.lengths import is_cross, stage_axes, value_rows
from twoheads.graphs.program.program import (
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
    inputs_of,
    outputs_of,
)

__all__ = ["StageCosts", "StagePlan", "attention_rows"]

PAGE_BYTES = 4096
"""Of a mapped file's pages."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage costs for one input.

    Attributes:
        name, engine: Of the stage and of the engine it calls; of a sequence stage, its operator.
        kind: ``tokenwise``, ``attention``, ``window`` (windowed attention and the region behind it), ``model`` (all
            layers of a block in one call) or ``sequence`` (no calls).
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
class _Tally:
    """Tiles of one attention: all, partial ones, and those that are merged with nothing, the first of each block."""

    tiles: int
    partial: int
    rows: int


def attention_rows(
    stage: AttentionStage, *, block_size: int, key_tile: int, queries: int, keys: int, cross: bool
) -> tuple[tuple[Segment, ...], ...]:
    """The non-empty key tiles of every query block; those of keys that are not drawn.

    Args:
        stage: The attention.
        block_size: Tokens of a query block.
        key_tile: Tokens of a key tile.
        queries: Tokens on the queries' axis.
        keys: Tokens on the keys' axis; as many unless ``cross``.
        cross: Whether the keys are on another axis: every block then sees all of them.
    """
    if cross:
        # All blocks are alike, and the first one is in an input of any length.
        row = row_segments(Full(), 0, block_size=block_size, key_tile=key_tile, length=keys)
        return (row,) * -(-queries // block_size)
    if stage.average is None:
        return _rows(stage.mask, block_size, key_tile, queries)
    return _exact_rows(stage.mask, stage.average, block_size, key_tile, queries)


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
    return _count(_rows(mask, block_size, key_tile, length))


def _count(rows: tuple[tuple[Segment, ...], ...]) -> _Tally:
    return _Tally(
        tiles=sum(segment.tiles for row in rows for segment in row),
        partial=sum(not segment.full for row in rows for segment in row),
        rows=sum(bool(row) for row in rows),
    )


class StageCosts:
    """Costs of single stages for one input.

    Args:
        program: Whose stages.
        lengths: The length of every input axis.
        head_rows: Rows for which the head runs.
    """

    def __init__(self, program: Program, lengths: Mapping[str, int], head_rows: int) -> None:
        self.program = program
        self.engines = {engine.name: engine for engine in program.engines}
        self._head_blocks = -(-head_rows // program.block_size)
        self._lengths = lengths
        self._values = {value.name: value for value in program.values()}
        self._rows = {name: value_rows(value, lengths) for name, value in self._values.items()}
        self._main_axis = program.value(program.hidden).axis
        attentions = [stage for stage in program.body if isinstance(stage, AttentionStage)]
        self._tiled = {name for stage in attentions for name in (stage.key, stage.value)}

    def plan(self, stage: Stage, *, head: bool = False) -> StagePlan:
        """The costs of ``stage``."""
        if isinstance(stage, AttentionStage):
            return self._plan_attention(stage)
        if isinstance(stage, SequenceStage):
            return StagePlan(
                stage.name, "sequence", stage.operator, 0, Formula("0", 0), 0, 0, self.nbytes(stage.output)
            )
        engine = self._tokenwise(stage.engine)
        formula = Formula(f"h = {self._head_blocks}", self._head_blocks) if head else self._block_formula(stage)
        calls = formula.calls
        padded = calls * self.program.block_size
        return StagePlan(
            name=stage.name,
            kind=stage.kind if isinstance(stage, FusedStage) else "tokenwise",
            engine=engine.name,
            calls=calls,
            formula=formula,
            flops=calls * engine.flops,
            bytes_moved=calls * _nbytes((*engine.inputs, *engine.outputs, *engine.weights)),
            outputs_bytes=sum(value.nbytes(padded) if head else self.nbytes(value) for value in stage.outputs),
        )

    def _block_formula(self, stage: TokenwiseStage) -> Formula:
        """One call a block, or a single one where nothing is on an axis."""
        axis, _ = stage_axes(stage, self._values)
        if axis is None:
            return Formula("1", 1)
        rows = axis_length(axis, self._lengths)
        calls = -(-rows // self.program.block_size)
        return (
            Formula(f"n = {calls}", calls) if axis == self._main_axis else Formula(f"ceil({rows}/M) = {calls}", calls)
        )

    def _plan_attention(self, stage: AttentionStage) -> StagePlan:
        engine = self._attention(stage.engine)
        queries = self._rows[stage.output.name]
        if isinstance(engine, AttentionEngine):
            costs = self._cross_costs(stage, engine) if self.cross(stage) else self._tile_costs(stage, engine, queries)
        elif self.cross(stage):
            raise InternalError(f"stage {stage.name}: cross attention on the engine {engine.name}")
        elif isinstance(engine, OracleEngine):
            costs = oracle_costs(stage, engine, queries)
        else:
            costs = stock_costs(stage, engine, queries)
        return StagePlan(
            name=stage.name,
            kind="attention",
            engine=engine.name,
            calls=costs.calls,
            formula=self._named(stage, costs.formula),
            flops=costs.flops,
            bytes_moved=costs.bytes_moved,
            outputs_bytes=self.nbytes(stage.output),
        )

    def _named(self, stage: AttentionStage, formula: Formula) -> Formula:
        """The formula, with its ``N`` where that is not the main one."""
        if self.cross(stage) or stage.output.axis == self._main_axis:
            return formula
        return Formula(f"{formula.text} at N = {self._rows[stage.output.name]}", formula.calls)

    def cross(self, stage: AttentionStage) -> bool:
        """Whether keys are on another axis than queries."""
        return is_cross(stage, self._values)

    def _tile_costs(self, stage: AttentionStage, engine: AttentionEngine, length: int) -> AttentionCosts:
        sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile, "length": length}
        average = stage.average
        tally = _tally(stage.mask, **sizes) if average is None else _sampled_tally(stage.mask, average, **sizes)
        formula = (
            attention_formula(stage.mask, **sizes) if average is None else average_formula(stage.mask, average, **sizes)
        )
        return _tally_costs(stage, engine, tally, formula)

    def _cross_costs(self, stage: AttentionStage, engine: AttentionEngine) -> AttentionCosts:
        sizes = {"block_size": engine.block_size, "key_tile": engine.key_tile}
        lengths = {"queries": self._rows[stage.output.name], "keys": self._rows[stage.key]}
        rows = attention_rows(stage, **sizes, **lengths, cross=True)
        return _tally_costs(stage, engine, _count(rows), cross_formula(**sizes, **lengths))

    def nbytes(self, value: Value) -> int:
        """Bytes of a stored value: whole key tiles where an attention reads it as keys or values, else whole blocks."""
        size = self.program.key_tile if value.name in self._tiled else self.program.block_size
        return value.nbytes(-(-self._rows[value.name] // size) * size)

    def liveness(
        self, body: tuple[Stage, ...], kept: set[str], sizes: Mapping[str, int] | None = None
    ) -> tuple[dict[str, tuple[str, ...]], int]:
        """Which values die after which stage, and the most bytes alive at once.

        Inputs are alive from the start, other values from the stage that defines them, all until their last reader;
        ``kept`` values stay. ``sizes`` are the values' bytes, if not all of each counts.
        """

        def size(value: Value) -> int:
            return self.nbytes(value) if sizes is None else sizes[value.name]

        alive = {entry.value.name: size(entry.value) for entry in self.program.inputs}
        last_reader = {name: stage.name for stage in body for name in inputs_of(stage)}
        released: dict[str, tuple[str, ...]] = {}
        peak = sum(alive.values())
        for stage in body:
            defined = {value.name: size(value) for value in outputs_of(stage)}
            alive |= defined
            held = stage.kept_bytes(self.program.block_size) if isinstance(stage, FusedStage) else 0
            peak = max(peak, sum(alive.values()) + held)
            ending = [name for name in (*inputs_of(stage), *defined) if last_reader.get(name, stage.name) == stage.name]
            released[stage.name] = tuple(name for name in dict.fromkeys(ending) if name not in kept)
            for name in released[stage.name]:
                del alive[name]
        return released, peak

    def transient(self, stage: Stage) -> int:
        """Bytes that one worker needs while it runs the stage: an estimate.

        Attention holds scores, probabilities and one more array of their shape; a token-wise engine about twice its
        inputs and outputs; a sequence stage copies of what it reads, beside its result.
        """
        if isinstance(stage, AttentionStage):
            engine = self._attention(stage.engine)
            return 3 * engine.q_num_heads * engine.block_size * engine.key_tile * np.dtype(np.float32).itemsize
        if isinstance(stage, SequenceStage):
            return self.nbytes(stage.output) + sum(self.nbytes(self._values[name]) for name in stage.inputs)
        tokenwise = self._tokenwise(stage.engine)
        if isinstance(tokenwise, FusedEngine):
            return tokenwise.workspace
        return 2 * _nbytes((*tokenwise.inputs, *tokenwise.outputs))

    def weights(self, stages: tuple[Stage, ...], *, mapped: bool) -> dict[tuple[str, bool], int]:
        """Bytes of every weight that the stages bind to ports, by its name and whether numbers are looked up in it.

        A bias's and the learned sinks' few numbers a head are bound to no port, their size is not known here.

        Args:
            stages: Whose weights.
            mapped: They are mapped from the bundle and packed by a processor's kernels: of a table, rows that no token
                names stay in the file, and weights of float16 may be packed in float32. Else all are copied as they
                are, to a device.
        """
        sizes: dict[tuple[str, bool], int] = {}
        for stage in stages:
            if isinstance(stage, TokenwiseStage):
                ports, limits = self._tokenwise(stage.engine).weights, self.program.lookup_limits(stage)
                rows = max(self._rows[value.name] for value in stage.outputs)
                for name, port in zip(stage.weights, ports, strict=True):
                    table = bool(port.shape) and port.shape[0] in limits
                    sizes[name, table] = _mapped(port, rows, table=table) if mapped else port.nbytes
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


def _mapped(port: Port, rows: int, *, table: bool) -> int:
    """Resident bytes of a mapped weight; of a ``table`` the pages of any ``rows`` rows, which may begin within one."""
    if not table:
        return 2 * port.nbytes if port.dtype == "float16" else port.nbytes
    pages = 1 + -(-port.nbytes // port.shape[0] // PAGE_BYTES)
    return min(port.nbytes, rows * pages * PAGE_BYTES)


def _tally_costs(stage: AttentionStage, engine: AttentionEngine, tally: _Tally, formula: Formula) -> AttentionCosts:
    masked = tally.tiles if stage.bias else tally.partial
    merges = tally.tiles - (0 if stage.sinks else tally.rows)
    plain = _nbytes(_ports(engine, "full"))
    mask, previous = (_nbytes(_ports(engine, variant)) - plain for variant in ("masked", "full_merge"))
    return AttentionCosts(
        calls=tally.tiles,
        formula=formula,
        flops=tally.tiles * engine.flops,
        bytes_moved=tally.tiles * plain + masked * mask + merges * previous,
    )


def _ports(engine: AttentionEngine, variant: str) -> tuple[Port, ...]:
    inputs, outputs = engine.ports(variant)
    return (*inputs, *outputs)


def _nbytes(ports: tuple[Port, ...]) -> int:
    return sum(port.nbytes for port in ports)
