"""Attention policies: their text, and the masks that layers have under them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graphs.sample_masks import masks
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.masks.policy import Policy, parse_policy, restrict

LENGTH = 40


def visible(mask: Mask) -> np.ndarray:
    at = np.arange(LENGTH)
    return np.broadcast_to(mask.dense(at[:, None], at[None, :]), (LENGTH, LENGTH))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("full", Policy()),
        ("window:1024", Policy(window=1024)),
        ("window:1024+sinks:4", Policy(window=1024, sinks=4)),
        ("average:samples=2", Policy(samples=2)),
        ("average:samples=2+window:8+sinks:4+seed:7", Policy(8, 4, 2, 7)),
    ],
)
def test_text(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy
    assert str(policy) == text
    assert policy.exact == (text == "full")


def test_terms_come_in_any_order() -> None:
    assert parse_policy(" sinks:4 + window:8 ") == Policy(window=8, sinks=4)


policies = st.builds(
    Policy, st.one_of(st.none(), st.integers(1, 99)), st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)
) | st.builds(Policy, st.integers(1, 99), st.integers(0, 9))


@given(policies)
def test_round_trip(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no term"),
        ("windows:4", "'windows:4' is no term"),
        ("window:-4", "'window:-4' is no term"),
        ("window:1e3", "'window:1e3' is no term"),
        ("window:4+window:5", "window is given twice"),
        ("window:0", "'window:0' is zero"),
        ("full+window:4", "'full' is no term"),
        ("average:2", "'average:2' is no term"),
        ("average:samples=0", "'average:samples=0' is zero"),
        ("sinks:4", "sinks without a window"),
        ("window:4+seed:1", "nothing is drawn"),
        ("window:999999999999999", "a window of 999999999999999"),
        ("average:samples=2+seed:4294967296", "a seed of 4294967296"),
    ],
)
def test_refusals(text: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem) as caught:
        parse_policy(text)
    assert caught.value.where.startswith("--attention")
    assert caught.value.fix


def test_a_window_counts_the_query_as_hugging_face_does() -> None:
    mask = restrict(parse_mask("causal"), Policy(window=4))
    assert np.flatnonzero(visible(mask)[20]).tolist() == [17, 18, 19, 20]
    both = restrict(parse_mask("full"), Policy(window=4))
    assert np.flatnonzero(visible(both)[20]).tolist() == [17, 18, 19, 20, 21, 22, 23]


def test_sinks_are_seen_by_every_query_that_is_not_before_them() -> None:
    seen = visible(restrict(parse_mask("causal"), Policy(window=2, sinks=3)))
    assert np.flatnonzero(seen[20]).tolist() == [0, 1, 2, 19, 20]
    assert np.flatnonzero(seen[1]).tolist() == [0, 1]


@given(masks, st.integers(1, 50), st.integers(0, 9))
def test_a_restricted_mask_is_what_both_allow(mask: Mask, window: int, sinks: int) -> None:
    i, j = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None, :]
    allowed = (np.abs(i - j) < window) | (j < sinks)
    np.testing.assert_array_equal(visible(restrict(mask, Policy(window, sinks))), visible(mask) & allowed)


@pytest.mark.parametrize(
    "text", ["causal & window(9, 0)", "chunk(10)", "window(9, 3)", "causal & (window(2, 0) | chunk(8))"]
)
def test_a_narrower_layer_stays_as_it_is(text: str) -> None:
    mask = parse_mask(text)
    assert restrict(mask, Policy(window=10, sinks=4)) is mask
    assert restrict(mask, Policy(window=9)) != mask or text.endswith("chunk(8))")


def test_full_and_average_policies_leave_masks_alone() -> None:
    mask = parse_mask("causal")
    assert restrict(mask, Policy()) is mask
    assert restrict(mask, Policy(window=4, samples=1)) is mask
