"""Runs on several machines: what one of them computes, reads and holds, and bounds on what they take together."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_masks import masks
from tests.graphs.sample_profiles import profile_of
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.masks.expressions import Causal, Mask, parse_mask
from twoheads.graphs.masks.policy import Policy
from twoheads.graphs.prediction.many_machines import WorkersPlan, plan_workers
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.variants.impose_policy import impose_policy

BLOCK_BYTES = 16 * 4 * 8 * 2 * 2
"""Keys and values of a block of the sample decoder: 2 heads of 8 float32 each."""


def _plan(program: Program, length: int, workers: int, threads: int = 1) -> WorkersPlan:
    return plan_workers(make_schedule(program, length), profile_of(program), workers, threads)


def test_two_workers_by_hand() -> None:
    # Two blocks, one for each worker; a layer's rows take 2 s (masked) and 1 + 8 s (full, masked_merge).
    plan = _plan(decoder(), 32, 2)
    assert plan.seconds == pytest.approx(4 * 16 + 2 * 9)  # three token-wise stages and the head
    assert plan.work_seconds == pytest.approx(2 * 4 * 16 + 2 * (2 + 9))
    assert plan.efficiency == pytest.approx((128 + 22) / (2 * 82))
    assert plan.calls == 4 + 2 * 2
    assert plan.cost == pytest.approx(3.0 * 2 * 82 / 3600)
    tokens = 16 * 8 * 2
    assert plan.read_bytes == tokens + 2 * BLOCK_BYTES  # its block of tokens, the other's keys and values twice
    assert plan.sent_bytes == (2 * tokens + 2 * BLOCK_BYTES) // 2


def test_the_network_is_waited_for() -> None:
    quick, slow = (
        plan_workers(make_schedule(decoder(), 32), profile_of(decoder(), bandwidth=speed, round_seconds=0.5), 2, 1)
        for speed in (1e30, BLOCK_BYTES)
    )
    assert quick.transfer_seconds == pytest.approx((6 + 3) * 0.5)  # after two attentions and the last stage they copy
    # The first stage waits for its tokens, each attention for the other's keys and values; then hidden states and
    # outputs of attention, and in the end the last hidden states, get a second holder.
    waits = 16 * 8 * 2 / BLOCK_BYTES + 2 * 1 + 2 * 2 + 1
    assert slow.seconds - quick.seconds == pytest.approx(waits)
    assert slow.copied_bytes == 5 * BLOCK_BYTES


def test_one_worker_is_the_machine() -> None:
    schedule, profile = make_schedule(decoder(), 100), profile_of(decoder(), bandwidth=1.0, round_seconds=1.0)
    plan = plan_workers(schedule, profile, 1, 2)
    assert plan.seconds == pytest.approx(predict_run(schedule, profile, 2).seconds, rel=1e-12)
    assert plan.memory_bytes == schedule.peak_bytes
    assert (plan.read_bytes, plan.sent_bytes, plan.transfer_seconds) == (0, 0, 0.0)
    with pytest.raises(InputError, match="workers: is 0"):
        plan_workers(schedule, profile, 0, 2)


def test_workers_share_the_values() -> None:
    program = decoder(parse_mask("causal & window(15, 0)"))
    fixed = make_schedule(program, 1024).memory
    one, four, sixteen = (
        _plan(program, 1024, workers).memory_bytes - (fixed.total - fixed.values) for workers in (1, 4, 16)
    )
    assert four <= one / 2  # most blocks are held twice
    assert sixteen < four / 3


@settings(max_examples=40, deadline=None)
@given(mask=masks, length=st.integers(1, 300), workers=st.integers(1, 12), threads=st.integers(1, 2))
def test_bounds(mask: Mask, length: int, workers: int, threads: int) -> None:
    program = decoder(mask)
    one, several = _plan(program, length, 1, threads), _plan(program, length, workers, threads)
    assert 0 < several.efficiency <= 1 + 1e-9
    assert several.seconds <= one.seconds * (1 + 1e-9)
    assert several.calls <= one.calls
    schedule = make_schedule(program, length)
    assert several.sent_bytes * workers <= place(schedule, workers).moved_bytes or workers == 1


@given(mask=st.sampled_from(["causal", "full", "causal & window(99, 0)"]), length=st.integers(1, 2000))
@settings(max_examples=30, deadline=None)
def test_more_workers_are_never_slower_where_the_network_is_endless(mask: str, length: int) -> None:
    program = decoder(parse_mask(mask))
    seconds = [_plan(program, length, workers).seconds for workers in (1, 2, 4, 8, 16, 32)]
    assert all(more <= less * (1 + 1e-9) for less, more in itertools.pairwise(seconds))


def _masks(program: Program) -> list[str]:
    return [f"{stage.mask} {stage.average}" for stage in program.body if isinstance(stage, AttentionStage)]


def test_policies_change_masks_and_nothing_else() -> None:
    program = decoder(Causal(), parse_mask("causal & window(3, 0)"))
    assert impose_policy(program, Policy()) is program
    windowed = impose_policy(program, Policy(window=8, sinks=2))
    assert _masks(windowed)[0] != _masks(program)[0]
    assert _masks(windowed)[1] == _masks(program)[1]  # narrower already
    assert (windowed.engines, windowed.inputs) == (program.engines, program.inputs)
    sampled = impose_policy(program, Policy(samples=2))
    assert "samples=2" in _masks(sampled)[0]
    assert _masks(sampled)[1] == _masks(program)[1]
    assert impose_policy(sampled, Policy(window=8)) is sampled
    with pytest.raises(CompileError, match=r"stage layers\.0\.attention .*adds a bias by distance"):
        impose_policy(encoder(), Policy(samples=2))
