"""How each kind of stage runs on the host: one row a kind.

A new kind of stage is a module beside this one and a row in :data:`RUNNERS`; a new engine of attention, one in
:data:`ATTENTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.fused import ColumnsStage, FusedStage
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    ExpertsStage,
    OracleEngine,
    ScanStage,
    SequenceStage,
    Stage,
    StockEngine,
    TokenwiseStage,
)
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.half_range import check_half_range
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.stages.attention.packed import prepare_packed, run_packed_attention
from twoheads.runtime.stages.attention.tiled import run_attention
from twoheads.runtime.stages.experts import open_experts, run_experts
from twoheads.runtime.stages.fused import run_fused
from twoheads.runtime.stages.scan import open_scan, run_scan
from twoheads.runtime.stages.sequence import run_sequence
from twoheads.runtime.stages.stock.attention import run_stock_attention
from twoheads.runtime.stages.stock.oracle import run_oracle_attention
from twoheads.runtime.stages.tokenwise import run_tokenwise

__all__ = ["ATTENTIONS", "RUNNERS", "Runner"]


@dataclass(frozen=True, slots=True)
class Runner:
    """One kind of stage.

    Attributes:
        open: Opens its engines, where they are not open yet.
        run: Computes its outputs, which are allocated, as its inputs are.
        finish: What remains to be done when the padding of its outputs is zeroed.
    """

    open: Callable[[RunState, Any], object]
    run: Callable[[RunState, Any], None]
    finish: Callable[[RunState, Any, Sequence[ValueStore]], None]


def _nothing(run: RunState, stage: Stage, stores: Sequence[ValueStore] = ()) -> None:
    pass


def _as_the_head(run: RunState, stage: Stage) -> None:
    raise InternalError(f"stage {stage.name} is of the head, and the body does not run it")


def _open_tokenwise(run: RunState, stage: TokenwiseStage) -> None:
    run.engines.tokenwise(stage)


def _finish_tokenwise(run: RunState, stage: TokenwiseStage, stores: Sequence[ValueStore]) -> None:
    rows = max((store.length for store in stores if store.value.axis is not None), default=0)
    check_half_range(stage.name, stores, run.blocks(-(-rows // run.program.block_size)))
    if run.program.lookup_limits(stage):
        run.engines.weights.let_go(stage.weights)


def _open_attention(run: RunState, stage: AttentionStage) -> None:
    if run.coded is not None:
        prepare_packed(run, stage)
    else:
        run.engines.prepare_attention(stage.engine)


def _run_attention(run: RunState, stage: AttentionStage) -> None:
    if run.coded is not None:
        run_packed_attention(run, stage, run.coded)
    else:
        ATTENTIONS.of(run.program.engine(stage.engine))(run, stage)


RUNNERS = ByKind(
    "stages",
    {
        TokenwiseStage: Runner(_open_tokenwise, run_tokenwise, _finish_tokenwise),
        FusedStage: Runner(_open_tokenwise, run_fused, _finish_tokenwise),
        ColumnsStage: Runner(_nothing, _as_the_head, _nothing),  # which opens each piece when it is its turn
        AttentionStage: Runner(_open_attention, _run_attention, _nothing),
        ScanStage: Runner(open_scan, run_scan, _nothing),
        ExpertsStage: Runner(open_experts, run_experts, _nothing),
        SequenceStage: Runner(_nothing, run_sequence, _nothing),
    },
)
ATTENTIONS: ByKind[Callable[[RunState, AttentionStage], None]] = ByKind(
    "stages",
    {
        AttentionEngine: run_attention,
        StockEngine: run_stock_attention,
        OracleEngine: run_oracle_attention,
    },
)
