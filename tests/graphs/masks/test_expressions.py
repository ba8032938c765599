"""Mask expressions: their interval sets against enumeration, and their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graphs.sample_masks import dense, masks
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import (
    Causal,
    Chunk,
    Full,
    Mask,
    Sinks,
    Window,
    conjunction,
    disjunction,
    intersect,
    parse_mask,
    unite,
)

if TYPE_CHECKING:
    from twoheads.graphs.masks.expressions import Intervals

LENGTH = 90


def _members(intervals: Intervals) -> set[int]:
    return {key for start, stop in intervals for key in range(start, min(stop, LENGTH))}


@given(masks, st.integers(0, LENGTH - 1), st.integers(1, 40))
def test_support_holds_every_seen_key_and_covered_only_keys_seen_by_all(mask: Mask, start: int, count: int) -> None:
    rows = (start, min(start + count, LENGTH))
    block = dense(mask, LENGTH)[rows[0] : rows[1]]
    assert set(np.flatnonzero(block.any(0))) <= _members(mask.support(rows))
    assert _members(mask.covered(rows)) <= set(np.flatnonzero(block.all(0)))


@pytest.mark.parametrize("mask", [Full(), Causal(), Window(5, 0), Window(-1, 3), Window(0, -1), Sinks(7), Chunk(6)])
@pytest.mark.parametrize("rows", [(0, 1), (0, 8), (3, 9), (40, 48), (6, 12)])
def test_intervals_of_single_terms_are_exact(mask: Mask, rows: tuple[int, int]) -> None:
    block = dense(mask, LENGTH)[rows[0] : rows[1]]
    assert _members(mask.support(rows)) == set(np.flatnonzero(block.any(0)))
    assert _members(mask.covered(rows)) == set(np.flatnonzero(block.all(0)))


@given(masks, st.integers(1, 20), st.integers(0, 60))
def test_intervals_are_disjoint_ascending_and_not_empty(mask: Mask, count: int, start: int) -> None:
    for intervals in (mask.support((start, start + count)), mask.covered((start, start + count))):
        flat = [bound for interval in intervals for bound in interval]
        assert flat == sorted(set(flat))


@given(masks, masks, st.integers(0, 60), st.integers(0, 60))
def test_and_or_are_the_pairwise_operations(a: Mask, b: Mask, i: int, j: int) -> None:
    def at(mask: Mask) -> bool:
        return bool(mask.dense(np.array([[i]]), np.array([[j]]))[0, 0])

    assert at(a & b) == (at(a) and at(b))
    assert at(a | b) == (at(a) or at(b))


def test_definitions() -> None:
    def row(mask: Mask, i: int) -> list[int]:
        return np.flatnonzero(dense(mask, 12)[i]).tolist()

    assert row(Causal(), 3) == [0, 1, 2, 3]
    assert row(Window(2, 1), 5) == [3, 4, 5, 6]
    assert row(Window(2, 0), 1) == [0, 1]
    assert row(Window(-1, 0), 4) == [0, 1, 2, 3, 4]
    assert row(Window(0, -1), 9) == [9, 10, 11]
    assert row(Sinks(2), 7) == [0, 1]
    assert row(Chunk(4), 6) == [4, 5, 6, 7]
    assert row(Causal() & (Window(1, 0) | Sinks(2)), 7) == [0, 1, 6, 7]


@given(masks)
def test_text_round_trip(mask: Mask) -> None:
    assert parse_mask(str(mask)) == mask


def test_text_is_what_people_write() -> None:
    text = "causal & (window(511, 0) | sinks(4))"
    assert str(parse_mask(text)) == text
    assert parse_mask(" causal&window(-1,5) ") == Causal() & Window(-1, 5)


def test_full_and_repeats_are_dropped() -> None:
    assert conjunction([Full(), Causal(), Causal()]) == Causal()
    assert conjunction([]) == Full()
    assert disjunction([Causal(), Full()]) == Full()
    assert str((Causal() & Window(3, 0)) & (Causal() & Sinks(1))) == "causal & window(3, 0) & sinks(1)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "causal &",
        "banded",
        "window(1)",
        "window(1, 2, 3)",
        "window(1.5, 0)",
        "window(True, 0)",
        "window(left=1, right=0)",
        "causal + full",
        "~causal",
        "window",
        "__import__('os')",
        "window(a, 0)",
        "causal; full",
        "causal & " * 20000 + "full",
        "(" * 3000 + "causal" + ")" * 3000,
    ],
)
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(CompileError, match="is not a mask expression"):
        parse_mask(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("window(-2, 0)", "a side below -1"), ("sinks(0)", "keeps no key"), ("chunk(0)", "is not a size")],
)
def test_impossible_sizes_are_refused(text: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        parse_mask(text)


def test_interval_sets() -> None:
    assert unite([((0, 3), (8, 9)), ((3, 5),), ((4, 6),)]) == ((0, 6), (8, 9))
    assert intersect([((0, 5), (7, 20)), ((3, 8), (10, 12))]) == ((3, 5), (7, 8), (10, 12))
    assert intersect([((0, 2),), ((2, 4),)]) == ()
    assert unite([]) == intersect([]) == ()


@pytest.mark.parametrize(
    ("text", "boundaries"),
    [
        ("full", set()),
        ("causal", {0}),
        ("window(17, -1)", {17}),
        ("causal & (window(511, 0) | sinks(4))", {0, 4, 511}),
        ("chunk(20) & window(3, 5)", {3, 5, 20}),
    ],
)
def test_a_mask_says_where_what_is_seen_changes(text: str, boundaries: set[int]) -> None:
    assert parse_mask(text).boundaries() == boundaries
