"""The head in pieces of columns: which heads have it, what it costs, and when a limit asks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.graphs.sample_programs import classifier, decoder
from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import Program, TokenwiseEngine
from twoheads.graphs.schedule import head_columns as module
from twoheads.graphs.schedule.head_columns import head_columns, limited_schedule
from twoheads.graphs.schedule.schedule import Schedule, make_schedule, packing_bytes
from twoheads.graphs.schedule.spill import plan_spill
from twoheads.graphs.schedule.theorems import stage_claims

CLASSES, COLUMNS, WIDTH, BLOCK = 100, 16, 32, 16
"""Of the sample decoder's head, and of a piece here."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLUMNS", COLUMNS)


def with_head(program: Program, **changes: Any) -> Program:
    engines = tuple(replace(engine, **changes) if engine.name == "head" else engine for engine in program.engines)
    return replace(program, engines=engines)


def in_columns(program: Program) -> Program:
    found = head_columns(program)
    assert found is not None
    return found


def test_every_column_is_in_a_piece() -> None:
    (stage,) = in_columns(decoder()).head
    assert isinstance(stage, ColumnsStage)
    assert (stage.whole, stage.parted, stage.alone) == ("head", ("embed",), True)
    assert stage.starts == (0, 16, 32, 48, 64, 80, 84)
    engine = in_columns(decoder()).engine_of(TokenwiseEngine, stage.engine)
    assert engine.outputs[0].shape == (1, BLOCK, COLUMNS)
    assert [port.shape for port in engine.weights] == [(COLUMNS, WIDTH)]


def test_some_heads_have_no_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = decoder().engine_of(TokenwiseEngine, "head").weights
    assert head_columns(classifier()) is None
    assert head_columns(with_head(decoder(), weights=(replace(table, shape=(WIDTH, CLASSES)),))) is None
    assert head_columns(with_head(decoder(), weights=(replace(table, dtype="uint8"),))) is None  # 100 is no multiple
    monkeypatch.setattr(module, "COLUMNS", CLASSES // 3)
    assert head_columns(decoder()) is None


def test_a_piece_costs_its_own_weights_and_calls_are_counted() -> None:
    columns = in_columns(decoder())
    whole, pieces = (make_schedule(program, 70, output="logits", workers=2) for program in (decoder(), columns))
    assert pieces.engine_calls == pieces.formula_calls == whole.engine_calls + 5 * 7 - 5
    assert whole.memory.weights - pieces.memory.weights == 4 * (CLASSES - COLUMNS) * WIDTH
    assert stage_claims(pieces)[-1].floor.calls == 5
    one = make_schedule(columns, 70, output="last", workers=2)
    assert one.engine_calls == make_schedule(decoder(), 70, output="last").engine_calls + 6


def wide(classes: int = 100_000) -> Program:
    """A decoder whose head is larger than all else."""
    program = decoder()
    (stage,), (scores,) = program.head, program.engine_of(TokenwiseEngine, "head").outputs
    (table,) = program.engine_of(TokenwiseEngine, "head").weights
    program = with_head(
        program,
        outputs=(replace(scores, shape=(1, BLOCK, classes)),),
        weights=(replace(table, shape=(classes, WIDTH)),),
    )
    logits = replace(stage.outputs[0], shape=(1, "n", classes))
    return replace(program, head=(replace(stage, outputs=(logits,), weights=("lm",)),))


@pytest.mark.parametrize("output", ["last", "logits"])
def test_a_limit_asks_for_pieces_where_the_head_does_not_fit(output: str) -> None:
    program, columns = wide(), in_columns(wide())

    def make(chosen: Program) -> Schedule:
        return make_schedule(chosen, 70, output=output, workers=1)

    def chosen(limit: int | None, among: Program | None = columns) -> Program:
        return limited_schedule(program, among, make, limit=limit, disk=False, workers=1).program

    most, less = make(program).peak_bytes, make(columns).peak_bytes
    assert less < most - 12_000_000
    assert chosen(None) is program
    assert chosen(most) is program
    least = plan_spill(make(program), limit=most - 1, disk=False, workers=1).memory
    assert least is not None
    assert chosen(least.total) is program
    assert chosen(less) is columns
    assert chosen(less, None) is program
    assert (
        limited_schedule(
            program, columns, lambda one: make_schedule(one, 70, output="hidden"), limit=1, disk=False, workers=1
        ).program
        is program
    )


def test_a_streamed_plan_of_pieces_has_the_values_that_are_left_and_packs_a_piece() -> None:
    schedule = make_schedule(in_columns(wide()), 70, output="logits", workers=1)
    found = plan_spill(schedule, limit=schedule.peak_bytes - 1, disk=False, workers=1)
    assert found.streamed
    assert found.memory is not None
    assert found.memory.weights == 4 * COLUMNS * WIDTH
    assert found.memory.values == 4 * 5 * BLOCK * WIDTH < schedule.memory.values
    others = packing_bytes(
        StageCosts(schedule.program, {"n": 70}, 70).weights(schedule.program.body, mapped=True).values()
    )
    assert schedule.memory.process - found.memory.process == others - found.memory.weights > 0
