"""Placement: everything is computed once, balanced, and what has to travel is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_masks import dense, masks
from tests.graphs.sample_programs import classifier, decoder, encoder
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Causal, Full, parse_mask
from twoheads.graphs.program.lengths import input_axes, is_cross
from twoheads.graphs.program.program import AttentionStage, Program, SequenceStage
from twoheads.graphs.schedule.placement import deal_rows, place
from twoheads.graphs.schedule.reads import StageReads
from twoheads.graphs.schedule.schedule import make_schedule, needed_stages

sensible_programs = st.one_of(
    st.builds(
        lambda mask, ratio: decoder(mask, Causal(), mask, block_size=4, key_tile=4 * ratio), masks, st.integers(1, 3)
    ),
    st.builds(encoder, st.just(4)),
    st.builds(classifier, st.just(4)),
)


def _lengths(program: Program, length: int) -> dict[str, int]:
    return dict.fromkeys(input_axes(program), length)


@settings(max_examples=60, deadline=None)
@given(sensible_programs, st.integers(1, 64), st.integers(1, 9))
def test_every_call_is_placed_once(program, length, workers) -> None:
    schedule = make_schedule(program, _lengths(program, length))
    placement = place(schedule, workers)
    assert [stage.name for stage in placement.stages] == [stage.name for stage in schedule.stages]
    for stage, plan in zip(placement.stages, schedule.stages, strict=True):
        assert stage.calls.sum() == plan.calls
        assert stage.cost.sum() == pytest.approx(plan.flops)
        assert ((stage.owner >= 0) & (stage.owner < workers)).all()
        assert (
            stage.cost.shape == stage.calls.shape == stage.read_bytes.shape == stage.written_bytes.shape == (workers,)
        )
    assert 0 < placement.efficiency <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(sensible_programs, st.integers(1, 64), st.data())
def test_reads_are_the_key_tiles_that_the_mask_shows(program, length, data) -> None:
    schedule = make_schedule(program, _lengths(program, length))
    reads = StageReads(schedule)
    for stage in needed_stages(program, schedule.output)[0]:
        rows = data.draw(st.sets(st.integers(0, reads.rows(stage) - 1)))
        found = reads.of(stage, rows)
        assert set(found) == set(stage.inputs)
        if isinstance(stage, AttentionStage) and not is_cross(stage, reads.values):
            block, tile = program.block_size, program.key_tile
            shown = dense(stage.mask, schedule.value_rows(stage.output))
            tiles = {key // tile for row in rows for key in np.flatnonzero(shown[row * block :][:block].any(0))}
            expected = [b for b in range(reads.blocks(stage.key)) if b * block // tile in tiles]
            assert list(found[stage.key]) == list(found[stage.value]) == expected
            assert list(found[stage.query]) == sorted(rows)


def test_causal_rows_are_dealt_and_windows_stay_together() -> None:
    causal = place(make_schedule(decoder(Causal(), Causal()), 16 * 64), 4)
    assert causal.efficiency > 0.95
    assert [np.bincount(stage.owner).tolist() for stage in causal.stages[:2]] == [[16] * 4] * 2
    windowed = place(make_schedule(decoder(*[parse_mask("causal & window(31, 0)")] * 2), 16 * 64), 4)
    assert windowed.owners["n"].tolist() == sorted(windowed.owners["n"].tolist())
    assert windowed.efficiency > 0.95
    # Two blocks of 16 keys and values, two heads of 8 float32, from the neighbour on the left.
    assert windowed.stages[1].read_bytes.tolist() == [0, *[2 * 2 * 16 * 2 * 8 * 4] * 3]


def test_only_keys_and_values_travel_between_token_blocks() -> None:
    schedule = make_schedule(decoder(Causal(), Full()), 16 * 12, output="hidden")
    placement = place(schedule, 3)
    first, *others = placement.stages
    assert first.read_bytes.sum() == 2 * 8 * 16 * 12  # tokens and positions, from the driver
    for stage in others:
        assert (stage.read_bytes.sum() > 0) == (stage.kind == "attention")
    assert placement.stages[3].read_bytes.tolist() == [8 * 2 * 16 * 2 * 8 * 4] * 3  # full: all that others wrote
    assert place(schedule, 1).moved_bytes == first.read_bytes.sum()


def test_sequence_stages_are_computed_at_home() -> None:
    program = classifier()
    schedule = make_schedule(program, _lengths(program, 100))
    placement = place(schedule, 3)
    moving = [stage for stage in program.body if isinstance(stage, SequenceStage)]
    assert moving
    for stage in moving:
        assert placement.stage(stage.name).owner.tolist() == [0]
        assert not placement.stage(stage.name).written_bytes[1:].any()


def test_measured_costs_replace_operations() -> None:
    schedule = make_schedule(encoder(), 64)
    engines = {plan.engine for plan in schedule.stages}
    placement = place(schedule, 2, costs=dict.fromkeys(engines, 0.5))
    assert placement.total_cost == pytest.approx(0.5 * schedule.engine_calls)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_dealt_rows_differ_by_one_row_and_one_cost(costs, workers) -> None:
    array = np.array(costs)
    owner = deal_rows(array, workers)
    counts = np.bincount(owner, minlength=workers)
    assert counts.max() - counts.min() <= 1
    load = np.bincount(owner, weights=array, minlength=workers)
    assert load.max() - load.min() <= array.max() + 1e-9
    assert (owner == deal_rows(array, workers)).all()


def test_it_is_quick_for_a_million_tokens_and_a_thousand_workers() -> None:
    layers = [Causal(), parse_mask("causal & window(4095, 0)")]
    placement = place(make_schedule(decoder(*layers, block_size=256, key_tile=256), 1_000_000), 1024)
    assert placement.efficiency > 0.9


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="workers"):
        place(make_schedule(decoder(), 10), 0)
