"""Axes: one text a formula, lengths as arithmetic says, sums and convolutions closed where they can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.axes import add_axes, axis_inputs, axis_length, make_axis, parse_axis, shift_axis

LENGTHS = st.fixed_dictionaries({name: st.integers(50, 5000) for name in ("n", "m", "k2")})
NAMES = st.lists(st.sampled_from(["n", "m", "k2"]), max_size=3)
ADD, DIV = st.integers(-20, 200), st.integers(1, 9)


def test_texts() -> None:
    assert make_axis(["n"]) == "n"
    assert make_axis(["n", "m"], 1) == "m+n+1"
    assert make_axis(["n"], -2) == "n-2"
    assert make_axis(["n"], 1, 2) == "(n+1)//2"
    assert make_axis(["n"], 0, 2) == "n//2"
    assert make_axis(["n", "n"], 1, 2) == "n"
    assert make_axis([], 197) == "197"
    assert axis_inputs("m+n+1") == ("m", "n")
    assert axis_inputs("n+n") == ("n",)
    assert axis_inputs("197") == ()


@given(NAMES, ADD, DIV, LENGTHS)
def test_an_axis_is_its_formula(of: list[str], add: int, div: int, lengths: dict[str, int]) -> None:
    axis = make_axis(of, add, div)
    expected = (sum(lengths[name] for name in of) + add) // div
    if expected < 1:
        with pytest.raises((InputError, ValueError)):
            axis_length(axis, lengths)
        return
    assert axis_length(axis, lengths) == expected
    assert str(parse_axis(axis)) == axis
    assert make_axis(parse_axis(axis).of, parse_axis(axis).add, parse_axis(axis).div) == axis


@given(NAMES, ADD, st.integers(1, 4), st.integers(0, 20), st.integers(1, 4), LENGTHS)
def test_convolutions_of_convolutions(
    of: list[str], add: int, div: int, more: int, again: int, lengths: dict[str, int]
) -> None:
    axis = make_axis(["n", *of], add, div)
    assert axis_length(shift_axis(axis, more, again), lengths) == (axis_length(axis, lengths) + more) // again


@given(st.lists(st.tuples(NAMES, st.integers(1, 50)), min_size=1, max_size=3), DIV, LENGTHS)
def test_sums(parts: list[tuple[list[str], int]], div: int, lengths: dict[str, int]) -> None:
    axes = [make_axis(of, add) for of, add in parts]
    assert axis_length(add_axes(axes), lengths) == sum(axis_length(axis, lengths) for axis in axes)
    divided = make_axis(["n"], 3, div)
    assert axis_length(add_axes([divided, "7"]), lengths) == axis_length(divided, lengths) + 7


def test_a_sum_of_two_quotients_is_none() -> None:
    for axes in (["n//2", "n//2"], ["n//2", "m"]):
        with pytest.raises(ValueError, match="is no axis"):
            add_axes(axes)


@pytest.mark.parametrize(
    "text", ["", "N", "n+", "+n", "n + 1", "n+m", "(n)//2", "n//0", "n//1", "n+1//2", "2n", "n-1+m", "n+0", "007", "-1"]
)
def test_another_spelling_is_no_axis(text: str) -> None:
    with pytest.raises(ValueError, match="axis"):
        parse_axis(text)


def test_errors() -> None:
    with pytest.raises(InputError, match="longer input"):
        axis_length("(n+1)//4", {"n": 2})
    with pytest.raises(InternalError, match="no length of m"):
        axis_length("m+n", {"n": 2})
    with pytest.raises(InternalError, match="no axis"):
        make_axis(["N"])
