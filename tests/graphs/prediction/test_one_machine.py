"""Predicted times of small programs on devices with round numbers, against sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_masks import masks
from tests.graphs.sample_profiles import ADD_SECONDS, SLOWER, TOKENWISE_SECONDS, VARIANT_SECONDS, profile_of
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.costs.variant_counts import variant_counts
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Causal, Mask, parse_mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.prediction.stage_times import makespan
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule

FULL, MASKED, FULL_MERGE, MASKED_MERGE = VARIANT_SECONDS.values()
FULL_ADD, MASKED_ADD = ADD_SECONDS.values()


def _attention_seconds(program: Program, length: int, threads: int = 1) -> float:
    schedule = make_schedule(program, length, output="hidden")
    stages = predict_run(schedule, profile_of(program), threads).stages
    return next(stage.seconds for stage in stages if stage.kind == "attention")


def test_a_causal_run_by_hand() -> None:
    # Rows of 1, 2 and 3 tiles: each begins in full, but for the first, and ends with the masked diagonal tile.
    rows = [MASKED, FULL + MASKED_MERGE, FULL + FULL_MERGE + MASKED_MERGE]
    run = predict_run(make_schedule(decoder(), 40, output="last"), profile_of(decoder()), 1)
    assert [stage.seconds for stage in run.stages] == pytest.approx(
        [3 * TOKENWISE_SECONDS, sum(rows), 3 * TOKENWISE_SECONDS, sum(rows), 3 * TOKENWISE_SECONDS, TOKENWISE_SECONDS]
    )
    assert run.seconds == pytest.approx(sum(stage.seconds for stage in run.stages))
    assert run.open_seconds == pytest.approx(0.5 * (4 + 4))  # of each token-wise stage, and of each variant


def test_two_threads_share_a_stage_and_slow_each_other_down() -> None:
    run = predict_run(make_schedule(decoder(), 40, output="last"), profile_of(decoder()), 2)
    longest = FULL + FULL_MERGE + MASKED_MERGE
    assert run.stages[0].seconds == pytest.approx(2 * TOKENWISE_SECONDS * SLOWER)
    assert run.stages[1].seconds == pytest.approx(longest * SLOWER)  # the others fit beside it
    assert run.stages[-1].seconds == pytest.approx(TOKENWISE_SECONDS)  # one block: nobody else calls


def test_what_changes_the_variants() -> None:
    assert _attention_seconds(decoder(parse_mask("window(0, 0)")), 40) == pytest.approx(3 * MASKED)
    assert _attention_seconds(decoder(Causal(), sinks=True), 20) == pytest.approx(2 * MASKED_MERGE + FULL_MERGE)
    assert _attention_seconds(encoder(), 32) == pytest.approx(2 * (MASKED + MASKED_MERGE))  # a bias masks every tile


def test_long_rows_are_added_up() -> None:
    profile = profile_of(decoder(), adds=True)
    stages = predict_run(make_schedule(decoder(), 96, output="hidden"), profile, 1).stages
    added = sum(FULL + FULL_ADD * (tiles - 2) + MASKED_ADD for tiles in (2, 3, 4, 5, 6))
    assert stages[1].seconds == pytest.approx(MASKED + added)


def test_sampled_attention_costs_the_host() -> None:
    base = decoder()
    average = Average(samples=1, window=None, sinks=0, seed=0)
    body = tuple(replace(stage, average=average) if isinstance(stage, AttentionStage) else stage for stage in base.body)
    program = replace(base, body=body)
    # Rows of 1 and 2 tiles are exact; the longer two keep the diagonal tile and draw one.
    rows = [MASKED, FULL + MASKED_MERGE, 2 * (MASKED + FULL + 32.0 + 64.0)]
    assert _attention_seconds(program, 64) == pytest.approx(64 * 0.25 + sum(rows))
    unmeasured = replace(profile_of(program), sampling=None)
    with pytest.raises(InputError, match="no times of sampled attention"):
        predict_run(make_schedule(program, 64), unmeasured, 1)


def test_makespan() -> None:
    assert makespan(np.array([]), 2) == 0
    assert makespan(np.full(5, 3.0), 2) == 9
    assert makespan(np.array([1.0, 2.0, 3.0, 4.0]), 2) == 5


@settings(max_examples=60, deadline=None)
@given(mask=masks, length=st.integers(1, 200), sinks=st.booleans(), tile=st.sampled_from([16, 32]), adds=st.booleans())
def test_variants_are_all_calls(mask: Mask, length: int, sinks: bool, tile: int, adds: bool) -> None:
    program = decoder(mask, key_tile=tile, sinks=sinks)
    schedule = make_schedule(program, length, output="hidden")
    stage = program.body[1]
    assert isinstance(stage, AttentionStage)
    counts = variant_counts(stage, [row for _, row in schedule.rows(stage)], adds=adds)
    assert sum(int(count.sum()) for count in counts.values()) == schedule.stages[1].calls
    assert all((count >= 0).all() for count in counts.values())


@settings(max_examples=30, deadline=None)
@given(mask=masks, length=st.integers(1, 300))
def test_threads_are_bounded_by_the_work(mask: Mask, length: int) -> None:
    program = decoder(mask)
    schedule, profile = make_schedule(program, length), profile_of(program)
    one, two = (predict_run(schedule, profile, threads).seconds for threads in (1, 2))
    assert one / 2 * (1 - 1e-9) <= two <= one * SLOWER * (1 + 1e-9)
