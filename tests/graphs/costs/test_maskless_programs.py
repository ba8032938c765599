"""Programs on stock engines and oracles: their text, their JSON and their schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.graphs.sample_programs import decoder
from twoheads.graphs.costs.maskless_formulas import maskless_formula
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.parser import parse_program
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import AttentionEngine, Engine, OracleEngine, Program, StockEngine
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import program_claim
from twoheads.graphs.serialization.json_codec import from_json, to_json

MASKS = ("causal", "causal & (window(31, 0) | sinks(4))")


def _stock(engine: AttentionEngine) -> Engine:
    sizes = (engine.head_dim, engine.v_head_dim, engine.block_size, engine.key_tile)
    return StockEngine(engine.name, engine.q_num_heads, engine.kv_num_heads, *sizes, engine.scale, 0, 1, engine.dtype)


def _oracle(engine: AttentionEngine) -> Engine:
    sizes = (engine.block_size, engine.head_dim, engine.v_head_dim)
    model = (engine.q_num_heads, engine.kv_num_heads, engine.scale)
    return OracleEngine(engine.name, 2, 3, *sizes, 0, "causal", engine.dtype, *model)


PROGRAMS = {
    name: replace(
        program,
        engines=tuple(make(engine) if isinstance(engine, AttentionEngine) else engine for engine in program.engines),
    )
    for name, make in (("stock", _stock), ("oracle", _oracle))
    for program in (decoder(*map(parse_mask, MASKS)),)
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_text_and_json_round_trip(name: str) -> None:
    program = PROGRAMS[name]
    assert f" {name} " in print_program(program)
    assert parse_program(print_program(program)) == program
    assert from_json(Program, to_json(program)) == program


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("length", [1, 16, 17, 100, 1000])
def test_counted_calls_equal_the_formula_and_respect_the_floor(name: str, length: int) -> None:
    schedule = make_schedule(PROGRAMS[name], length)
    assert schedule.engine_calls == schedule.formula_calls
    claim = program_claim(schedule)
    assert claim.floor_calls <= claim.calls
    assert all(stage.flops > 0 and stage.bytes_moved > 0 for stage in schedule.stages)


def test_stock_stages_take_the_maskless_formula() -> None:
    stages = [stage for stage in make_schedule(PROGRAMS["stock"], 1000).stages if stage.kind == "attention"]
    expected = [maskless_formula(parse_mask(text), block_size=16, key_tile=16, length=1000) for text in MASKS]
    assert [stage.formula for stage in stages] == expected
