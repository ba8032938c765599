"""What single stages of a program cost for one input: calls, operations, bytes, and how long their values live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.costs.attention_costs import AttentionCosts, port_bytes, tile_costs
from twoheads.graphs.costs.call_formulas import Formula
from twoheads.graphs.costs.expert_costs import ExpertCosts, expert_costs
from twoheads.graphs.costs.long_inputs import too_long
from twoheads.graphs.costs.maskless_costs import oracle_costs, stock_costs
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.engines.quantised import numbers_beside
from twoheads.graphs.program.fused import ColumnsStage, FusedStage
from twoheads.graphs.program.lengths import is_cross, value_rows
from twoheads.graphs.program.program import (
    AnyAttention,
    AttentionEngine,
    AttentionStage,
    ExpertsEngine,
    ExpertsStage,
    OracleEngine,
    Port,
    Program,
    ScanEngine,
    ScanStage,
    SequenceStage,
    Stage,
    StockEngine,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)

__all__ = ["CHAINED", "PAGE_BYTES", "StageCosts", "StagePlan"]

CHAINED = frozenset({"model", "scan"})
"""Kinds of stages whose call for a block needs the one for the block before."""

LONGEST_BY_ROWS = 1 << 20
"""Blocks of an input whose attention has no period: drawn keys, synthetic keys, oracles."""

INDEX_BYTES = 8
"""Of a whole number."""

AROUND_BYTES = 1 << 16
"""Of a mapped file's pages that Linux maps around one that is read, as far as they are in its cache: all are where the
file was hashed or written before."""

PAGE_BYTES = 1 << 12
"""Of a page: a row that is fetched alone begins in one and ends in another."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage costs for one input.

    Attributes:
        name, engine: Of the stage and of the engine it calls; of a sequence stage, its operator.
        kind: ``tokenwise``, ``attention``, ``window`` (windowed attention and the region behind it), ``model`` (all
            layers of a block in one call), ``scan``, ``experts`` or ``sequence`` (no calls).
        calls: Engine calls, counted; ``formula`` derives the same number independently. Of ``experts`` the most that
            there may be: tokens choose. What these cost beside is counted where all experts are chosen equally often.
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

    @property
    def routed(self) -> bool:
        """Whether how many of the calls there are follows from what tokens choose."""
        return self.kind == "experts"


class StageCosts:
    """Costs of single stages for one input.

    Args:
        program: Whose stages.
        lengths: The length of every input axis.
        head_rows: Rows for which the head runs.
    """

    def __init__(self, program: Program, lengths: Mapping[str, int], head_rows: int) -> None:
        self.program = program
        self._head_rows = head_rows
        self._head_blocks = -(-head_rows // program.block_size)
        self._lengths = lengths
        self._values = {value.name: value for value in program.values()}
        self._rows = {name: value_rows(value, lengths) for name, value in self._values.items()}
        self._main_axis = program.value(program.hidden).axis
        self._tiled = program.tiled

    def plan(self, stage: Stage, *, head: bool = False) -> StagePlan:
        """The costs of ``stage``."""
        return _KINDS.of(stage).plan(self, stage, head)

    def block_formula(self, stage: Stage) -> Formula:
        """One call a block, or a single one where nothing is on an axis."""
        axis, _ = stage.axes(self._values)
        if axis is None:
            return Formula("1", 1)
        rows = axis_length(axis, self._lengths)
        calls = -(-rows // self.program.block_size)
        return (
            Formula(f"n = {calls}", calls) if axis == self._main_axis else Formula(f"ceil({rows}/M) = {calls}", calls)
        )

    @property
    def head_formula(self) -> Formula:
        """The calls of a stage of the head."""
        return Formula(f"h = {self._head_blocks}", self._head_blocks)

    @property
    def head_block_rows(self) -> int:
        """The most rows of the head that a block has."""
        return min(self._head_rows, self.program.block_size)

    def attention_engine(self, stage: AttentionStage) -> AttentionEngine | StockEngine | OracleEngine:
        """The engine that ``stage`` calls."""
        for engine in self.program.engines:
            if engine.name == stage.engine and isinstance(engine, AnyAttention):
                return engine
        raise InternalError(f"program {self.program.name} has no attention engine {stage.engine!r}")

    def attention_costs(self, stage: AttentionStage) -> AttentionCosts:
        """The costs of the calls of ``stage``."""
        engine = self.attention_engine(stage)
        queries, cross = self._rows[stage.output.name], is_cross(stage, self._values)
        by_rows = stage.average is not None or not isinstance(engine, AttentionEngine)
        if by_rows and queries > LONGEST_BY_ROWS * self.program.block_size:
            raise too_long(queries, f"the calls of stage {stage.name} are counted row by row")
        costs: AttentionCosts = _ATTENTIONS.of(engine)(stage, engine, queries, self._rows[stage.key] if cross else None)
        if cross or stage.output.axis == self._main_axis:
            return costs
        return replace(costs, formula=Formula(f"{costs.formula.text} at N = {queries}", costs.calls))

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
        last_reader = {name: stage.name for stage in body for name in stage.inputs}
        released: dict[str, tuple[str, ...]] = {}
        peak = sum(alive.values())
        for stage in body:
            defined = {value.name: size(value) for value in stage.outputs}
            alive |= defined
            peak = max(peak, sum(alive.values()) + stage.kept_bytes(self.program.block_size))
            ending = [name for name in (*stage.inputs, *defined) if last_reader.get(name, stage.name) == stage.name]
            released[stage.name] = tuple(name for name in dict.fromkeys(ending) if name not in kept)
            for name in released[stage.name]:
                del alive[name]
        return released, peak

    def transient(self, stage: Stage) -> int:
        """Bytes that one worker needs while it runs the stage: an estimate.

        Attention holds scores, probabilities and one more array of their shape; a token-wise engine about twice its
        inputs and outputs; a sequence stage copies of what it reads, beside its result.
        """
        return _KINDS.of(stage).transient(self, stage)

    def weights(
        self, stages: tuple[Stage, ...], *, mapped: bool, around: int = AROUND_BYTES
    ) -> dict[tuple[str, bool], int]:
        """Bytes of every weight that the stages bind to ports, by its name and whether numbers are looked up in it.

        A bias's and the learned sinks' few numbers a head are bound to no port, their size is not known here.

        Args:
            stages: Whose weights.
            mapped: They are mapped from the bundle and packed by a processor's kernels: of a table, rows that no token
                names stay in the file, and weights of float16 may be packed in float32. Else all are copied as they
                are, to a device.
            around: Bytes beside each row of a mapped table that are in memory with it.
        """
        sizes: dict[tuple[str, bool], int] = {}
        wanted = {stage.name for stage in stages}
        for stage, engine in self.program.bindings:
            if stage.name in wanted:
                tables = self.program.tables(stage, engine)
                rows = max(self._rows[value.name] for value in stage.outputs)
                for name, port in zip(stage.weights, engine.weights, strict=True):
                    table = name in tables
                    read = rows if table else None
                    sizes[name, table] = _mapped(port, read, around) if mapped else port.nbytes
        for mixture in self.program.mixtures:
            if mixture.name in wanted:
                mixed = self.program.engine_of(ExpertsEngine, mixture.engine)
                read = expert_costs(mixed, self._rows[mixture.output.name]).read if mapped else mixed.experts
                bound = zip(mixture.weights, mixed.expert_ports, strict=True)
                sizes |= {(name, False): read * port.nbytes for name, port in bound}
        return sizes

    def mixture_rows(self, stage: ExpertsStage) -> int:
        """The tokens of a mixture."""
        return self._rows[stage.output.name]


def _mapped(port: Port, rows: int | None, around: int) -> int:
    """Resident bytes of a mapped weight; of a table the pages of any ``rows`` rows, which may begin within one."""
    if rows is None:
        return 2 * port.nbytes if port.dtype == "float16" else port.nbytes
    return min(port.nbytes, rows * (around + port.nbytes // port.shape[0]))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of stage is costed: its plan (of the head, or not), and what a worker needs while it runs."""

    plan: Callable[[StageCosts, Any, bool], StagePlan]
    transient: Callable[[StageCosts, Any], int]


def _tokenwise_plan(costs: StageCosts, stage: TokenwiseStage, head: bool) -> StagePlan:
    formula = costs.head_formula if head else costs.block_formula(stage)
    return _calls_plan(costs, stage, formula, padded=formula.calls * costs.program.block_size if head else None)


def _calls_plan(costs: StageCosts, stage: TokenwiseStage, formula: Formula, *, padded: int | None) -> StagePlan:
    """As many calls of a stage's engine; ``padded`` are the rows of a head's outputs."""
    engine, calls = costs.program.engine_of(TokenwiseEngine, stage.engine), formula.calls
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        engine=engine.name,
        calls=calls,
        formula=formula,
        flops=calls * engine.flops,
        bytes_moved=calls * port_bytes((engine.inputs, engine.outputs, engine.weights)),
        outputs_bytes=sum(costs.nbytes(value) if padded is None else value.nbytes(padded) for value in stage.outputs),
    )


def _columns_plan(costs: StageCosts, stage: ColumnsStage, head: bool) -> StagePlan:
    blocks, pieces = costs.head_formula, len(stage.starts)
    calls = blocks.calls * pieces
    formula = Formula(f"h*ceil({stage.classes}/{stage.columns}) = {calls}", calls)
    return _calls_plan(costs, stage, formula, padded=blocks.calls * costs.program.block_size)


def _tokenwise_transient(costs: StageCosts, stage: TokenwiseStage) -> int:
    engine = costs.program.engine_of(TokenwiseEngine, stage.engine)
    # The widest product of 4 bits has partial results beside its own, and pieces of what it reads.
    beside = max((numbers_beside(port) for port in engine.weights), default=0)
    return 2 * port_bytes(engine.ports()) + 4 * costs.program.block_size * beside


def _columns_transient(costs: StageCosts, stage: ColumnsStage) -> int:
    """Beside the arrays of a call, the rows of a block with all their columns, which calls fill."""
    rows = sum(value.nbytes(costs.head_block_rows) for value in stage.outputs)
    return _tokenwise_transient(costs, stage) + rows


def _fused_transient(costs: StageCosts, stage: FusedStage) -> int:
    return costs.program.engine_of(FusedEngine, stage.engine).workspace


def _attention_plan(costs: StageCosts, stage: AttentionStage, head: bool) -> StagePlan:
    return _plan_of(costs, stage, costs.attention_costs(stage))


def _plan_of(costs: StageCosts, stage: AttentionStage | ExpertsStage, found: AttentionCosts | ExpertCosts) -> StagePlan:
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        engine=stage.engine,
        calls=found.calls,
        formula=found.formula,
        flops=found.flops,
        bytes_moved=found.bytes_moved,
        outputs_bytes=costs.nbytes(stage.output),
    )


def _attention_transient(costs: StageCosts, stage: AttentionStage) -> int:
    engine = costs.attention_engine(stage)
    return 3 * engine.q_num_heads * engine.block_size * engine.key_tile * np.dtype(np.float32).itemsize


def _sequence_plan(costs: StageCosts, stage: SequenceStage, head: bool) -> StagePlan:
    return StagePlan(stage.name, stage.kind, stage.operator, 0, Formula("0", 0), 0, 0, costs.nbytes(stage.output))


def _sequence_transient(costs: StageCosts, stage: SequenceStage) -> int:
    return costs.nbytes(stage.output) + sum(costs.nbytes(costs.program.value(name)) for name in stage.inputs)


def _scan_plan(costs: StageCosts, stage: ScanStage, head: bool) -> StagePlan:
    engine = costs.program.engine_of(ScanEngine, stage.engine)
    formula = costs.block_formula(stage)
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        engine=engine.name,
        calls=formula.calls,
        formula=formula,
        flops=formula.calls * engine.call_flops(),
        bytes_moved=formula.calls * port_bytes(engine.ports()),
        outputs_bytes=costs.nbytes(stage.output),
    )


def _scan_transient(costs: StageCosts, stage: ScanStage) -> int:
    """Intermediate arrays, and the state twice: a call reads one and writes the other."""
    engine = costs.program.engine_of(ScanEngine, stage.engine)
    return 2 * engine.state.nbytes + engine.workspace


def _experts_plan(costs: StageCosts, stage: ExpertsStage, head: bool) -> StagePlan:
    engine = costs.program.engine_of(ExpertsEngine, stage.engine)
    return _plan_of(costs, stage, expert_costs(engine, costs.mixture_rows(stage)))


def _experts_transient(costs: StageCosts, stage: ExpertsStage) -> int:
    """Gathered rows and what a call makes of them, and the order of the tokens by expert."""
    engine = costs.program.engine_of(ExpertsEngine, stage.engine)
    return engine.workspace + 4 * INDEX_BYTES * engine.chosen * costs.mixture_rows(stage)


_KINDS = ByKind(
    "costs",
    {
        ExpertsStage: _Kind(_experts_plan, _experts_transient),
        ScanStage: _Kind(_scan_plan, _scan_transient),
        TokenwiseStage: _Kind(_tokenwise_plan, _tokenwise_transient),
        FusedStage: _Kind(_tokenwise_plan, _fused_transient),
        ColumnsStage: _Kind(_columns_plan, _columns_transient),
        AttentionStage: _Kind(_attention_plan, _attention_transient),
        SequenceStage: _Kind(_sequence_plan, _sequence_transient),
    },
)
_ATTENTIONS: ByKind[Callable[[AttentionStage, Any, int, int | None], AttentionCosts]] = ByKind(
    "costs", {AttentionEngine: tile_costs, StockEngine: stock_costs, OracleEngine: oracle_costs}
)
