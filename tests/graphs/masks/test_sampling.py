"""The average case: which tiles are exact, what is drawn, and how many calls that makes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_programs import decoder
from twoheads.graphs.costs.sampling import average_formula, average_tally
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Full, Mask, parse_mask
from twoheads.graphs.masks.sampling import Average, draw_keys, sampled_row
from twoheads.graphs.program.parser import parse_program
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import program_claim
from twoheads.graphs.serialization.json_codec import from_json, to_json

averages = st.builds(
    Average, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 40), st.integers(0, 3)
)
masks = st.sampled_from([Causal(), Full()])


@settings(max_examples=300, deadline=None)
@given(masks, averages, st.integers(1, 4), st.integers(1, 170))
def test_the_formula_is_the_count(mask: Mask, average: Average, ratio: int, length: int) -> None:
    sizes = {"block_size": 8, "key_tile": 8 * ratio, "length": length}
    tally = average_tally(mask, average, **sizes)
    formula = average_formula(mask, average, **sizes)
    assert formula.calls == tally.exact + tally.drawn
    assert formula.text.endswith(f"= {formula.calls}")


@settings(max_examples=150, deadline=None)
@given(masks, averages, st.integers(1, 3), st.integers(1, 130))
def test_near_keys_are_exact_and_the_others_are_seen_by_the_whole_block(
    mask: Mask, average: Average, ratio: int, length: int
) -> None:
    tile = 8 * ratio
    keys = np.arange(length)
    for block in range(-(-length // 8)):
        rows = np.arange(block * 8, min(block * 8 + 8, length))
        seen = np.broadcast_to(mask.dense(rows[:, None], keys[None, :]), (len(rows), length))
        row = sampled_row(mask, average, block, block_size=8, key_tile=tile, length=length)
        exact, remaining = np.zeros(length, bool), np.zeros(length, bool)
        for segment in row.exact:
            exact[segment.start * tile : segment.stop * tile] = True
        for start, stop in row.remaining:
            remaining[start:stop] = True
        assert not (exact & remaining).any()
        assert not (seen & ~exact & ~remaining).any()  # every visible key is one or the other
        assert seen[:, remaining].all()
        near = (keys // tile == rows[:, None] // tile) | (keys < average.sinks)
        if average.window is not None:
            near |= np.abs(keys - rows[:, None]) < average.window
        assert not (near & seen & ~exact).any()
        assert row.remaining_keys == remaining.sum()
        assert not row.remaining or row.remaining_keys > average.samples * tile


@pytest.mark.parametrize("mask", [Causal(), Full()])
def test_calls_grow_with_the_length_and_not_with_its_square(mask: Mask) -> None:
    calls = [
        average_formula(mask, Average(2, 64, 4, 0), block_size=16, key_tile=16, length=length).calls
        for length in (16_000, 32_000)
    ]
    assert calls[1] <= 2 * calls[0] + 100


def test_drawn_keys_are_different_ones_of_the_remaining() -> None:
    remaining = ((16, 48), (80, 120))
    drawn = draw_keys(Average(3, None, 0, 5), "layer", 7, remaining, 16)
    assert drawn.shape == (3, 16)
    assert len(set(drawn.ravel().tolist())) == 48
    assert all(16 <= key < 48 or 80 <= key < 120 for key in drawn.ravel())


def test_draws_depend_on_seed_stage_and_block_only() -> None:
    remaining = ((0, 4096),)

    def drawn(seed: int = 0, stage: str = "a", block: int = 3) -> list[int]:
        return draw_keys(Average(1, None, 0, seed), stage, block, remaining, 64).ravel().tolist()

    assert drawn() == drawn()
    assert len({tuple(drawn()), tuple(drawn(seed=1)), tuple(drawn(stage="b")), tuple(drawn(block=4))}) == 4


def test_every_key_is_drawn_as_often_as_any_other() -> None:
    counts = np.zeros(100)
    for seed in range(4000):
        counts[draw_keys(Average(2, None, 0, seed), "s", 0, ((0, 30), (30, 100)), 10).ravel()] += 1
    expected, deviation = 4000 * 20 / 100, np.sqrt(4000 * 0.2 * 0.8)
    assert np.abs(counts - expected).max() < 5 * deviation


def sampled_decoder(average: Average) -> Program:
    program = decoder(Causal(), parse_mask("causal & window(15, 0)"))
    body = tuple(
        dataclasses.replace(stage, average=average)
        if isinstance(stage, AttentionStage) and stage.mask == Causal()
        else stage
        for stage in program.body
    )
    return dataclasses.replace(program, body=body)


@pytest.mark.parametrize("average", [Average(2, None, 0, 0), Average(1, 512, 4, 7)])
def test_programs_round_trip(average: Average) -> None:
    program = sampled_decoder(average)
    assert parse_program(print_program(program)) == program
    assert from_json(Program, to_json(program)) == program
    assert f"average(samples={average.samples}, " in print_program(program)


@pytest.mark.parametrize("text", ["average(samples=1)", "average(samples=1, sinks=0, seed=0, x=1)", "average(1)"])
def test_other_texts_are_refused(text: str) -> None:
    printed = print_program(sampled_decoder(Average(1, None, 0, 0)))
    with pytest.raises(CompileError, match="program text, line"):
        parse_program(printed.replace("average(samples=1, sinks=0, seed=0)", text))


def test_the_schedule_counts_exact_and_drawn_tiles() -> None:
    program = sampled_decoder(Average(2, None, 0, 0))
    schedule = make_schedule(program, 16 * 10, output="hidden")
    plan = next(plan for plan in schedule.stages if plan.name == "layers.0.attention")
    assert plan.calls == 1 + 2 + 8 * 3  # a block has its own tile and two drawn ones, as far as there are as many
    assert plan.formula.calls == plan.calls
    assert plan.formula.text == "n + F(n) - F(n - 2) = 27"
    assert schedule.engine_calls == schedule.formula_calls
    assert "Theorem 4.1" in program_claim(schedule).theorem
    stage = program.body[1]
    assert isinstance(stage, AttentionStage)
    assert [sum(s.tiles for s in segments) for _, segments in schedule.rows(stage)] == [1, 2, 3, *[1] * 7]
