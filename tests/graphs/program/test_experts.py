"""Calls of experts hold every row, and there are never more of them than a plan says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoheads.graphs.costs.expert_costs import dense_is_cheaper, even_calls, expert_costs
from twoheads.graphs.program.engines.experts import (
    ExpertsEngine,
    fewest_calls,
    most_calls,
    row_calls,
    step_sizes,
)

ENGINE = ExpertsEngine("experts_0", 8, 2, 64, 32, "silu", "halves", 0.0, 0.0, 0, 0, 64, "float32")


@given(rows=st.integers(0, 1000), block=st.sampled_from([16, 24, 64, 256]))
def test_the_calls_of_an_expert_hold_its_rows(rows: int, block: int) -> None:
    sizes = replace(ENGINE, block_size=block).row_sizes
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[0] == 1
    assert sizes[-1] == block
    calls = row_calls(sizes, rows)
    assert sum(calls) >= rows > sum(calls[:-1]) - (not rows)
    assert list(calls) == sorted(calls, reverse=True)
    assert calls.count(block) >= rows // block
    assert sum(calls) - rows < block


@given(tokens=st.integers(1, 400), seed=st.integers(0, 50), skew=st.floats(0.1, 10), step=st.booleans())
def test_no_choice_takes_more_calls_than_the_plan_says(tokens: int, seed: int, skew: float, step: bool) -> None:
    random = np.random.default_rng(seed)
    tokens = min(tokens, ENGINE.block_size) if step else tokens
    weights = random.random(ENGINE.experts) ** skew + 1e-9
    chosen = [random.choice(ENGINE.experts, 2, replace=False, p=weights / weights.sum()) for _ in range(tokens)]
    counts = np.bincount(np.concatenate(chosen), minlength=ENGINE.experts)
    sizes = step_sizes(ENGINE, tokens) if step else ENGINE.row_sizes
    calls = sum(len(row_calls(sizes, int(count))) for count in counts)
    assert calls <= most_calls(ENGINE, tokens, step=step)
    if not step:
        assert fewest_calls(ENGINE, tokens) <= calls
        assert fewest_calls(ENGINE, tokens) <= len(even_calls(ENGINE, tokens)) <= most_calls(ENGINE, tokens)


def test_a_step_of_one_token_takes_as_many_calls_as_it_chooses_experts() -> None:
    assert step_sizes(ENGINE, 1) == (1,)
    assert most_calls(ENGINE, 1, step=True) == fewest_calls(ENGINE, 1) == 2
    assert 1 not in step_sizes(ENGINE, 8)


def test_costs_are_those_of_the_chosen_experts() -> None:
    wide = replace(ENGINE, experts=64, chosen=8, width=2048, inner=1024, block_size=256)
    costs = expert_costs(wide, 2048)
    dense = 2048 * 64 * wide.row_flops
    assert dense / 8 <= costs.flops < dense / 7
    assert costs.read == 64
    assert expert_costs(wide, 1).read == 8
    assert costs.formula.text == "8 of 64 experts a token: 64 to " + str(costs.calls)


@pytest.mark.parametrize(("width", "dense"), [(32, True), (2048, False)])
def test_small_experts_are_cheaper_all_at_once(width: int, dense: bool) -> None:
    assert dense_is_cheaper(replace(ENGINE, width=width, inner=width // 2)) is dense
