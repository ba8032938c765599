"""Every sequence operator against NumPy (or against a plain loop), and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twoheads.graphs.program.sequence_operators import DTYPES, OPERATORS, compute_sequence

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 7, 3)).astype(np.float32)
IDS = RNG.integers(0, 4, (1, 7))
OTHER = RNG.integers(0, 4, (1, 7))
TRUE = IDS > 1


def run(operator: str, *inputs: Any, shape: tuple[int, ...], dtype: str = "int64", **attributes: int) -> Any:
    assert tuple(attributes) == OPERATORS[operator].attributes_for(len(inputs))
    return compute_sequence(operator, attributes, inputs, shape, dtype)


def taken(start: int, step: int, rows: int, from_end: int = 0) -> Any:
    return run("take", X, shape=(1, rows, 3), dtype="float32", axis=1, from_end=from_end, start=start, step=step)


@pytest.mark.parametrize(
    ("start", "step", "rows"), [(0, 1, 7), (2, 1, 3), (-1, 2, 5), (6, -1, 7), (-2, 1, 12), (9, 1, 1)]
)
def test_take_gives_zeros_outside(start: int, step: int, rows: int) -> None:
    expected = [X[0, start + step * t] if 0 <= start + step * t < 7 else np.zeros(3) for t in range(rows)]
    np.testing.assert_array_equal(taken(start, step, rows)[0], np.array(expected, np.float32))


def test_take_from_the_end_and_dropping_the_dimension() -> None:
    np.testing.assert_array_equal(taken(-1, 1, 1, 1), X[:, -1:])
    np.testing.assert_array_equal(taken(-1, -1, 7, 1), X[:, ::-1])
    last = run("take", X, shape=(1, 3), dtype="float32", axis=1, from_end=1, start=-1, step=1)
    np.testing.assert_array_equal(last, X[:, -1])


@pytest.mark.parametrize("index", [0, 4, -1])
def test_take_at(index: int) -> None:
    found = run("take_at", X, np.array([[index]]), shape=(1, 1, 3), dtype="float32", axis=1)
    np.testing.assert_array_equal(found[:, 0], X[:, index])


def test_concat() -> None:
    found = run("concat", X[:, :2], X, shape=(1, 9, 3), dtype="float32", axis=1)
    np.testing.assert_array_equal(found, np.concatenate([X[:, :2], X], 1))


@pytest.mark.parametrize("operator", ["sum", "mean", "max", "min"])
def test_over_all_rows(operator: str) -> None:
    found = run(operator, X, shape=(1, 1, 3), dtype="float32", axis=1)
    np.testing.assert_allclose(found, getattr(X.astype(np.float64), operator)(1, keepdims=True), rtol=1e-6)


def test_floats_are_summed_in_float64() -> None:
    large = np.array([[[2**24], [1.0], [1.0], [-(2**24)]]], np.float32)
    assert run("sum", large, shape=(1, 1, 1), dtype="float32", axis=1).item() == 2.0


@pytest.mark.parametrize(
    ("operator", "numpy"),
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("equal", np.equal),
        ("not_equal", np.not_equal),
        ("greater", np.greater),
        ("less", np.less),
    ],
)
def test_arithmetic_of_two_or_with_a_number(operator: str, numpy: Any) -> None:
    expected = numpy(IDS, OTHER)
    dtype = expected.dtype.name
    np.testing.assert_array_equal(run(operator, IDS, OTHER, shape=(1, 7), dtype=dtype), expected)
    np.testing.assert_array_equal(run(operator, IDS, shape=(1, 7), dtype=dtype, value=2), numpy(IDS, 2))
    row = OTHER[:, :1]
    np.testing.assert_array_equal(run(operator, IDS, row, shape=(1, 7), dtype=dtype), numpy(IDS, row))


def test_counting_and_choosing() -> None:
    np.testing.assert_array_equal(run("cumsum", TRUE, shape=(1, 7), axis=1), TRUE.cumsum(1))
    np.testing.assert_array_equal(run("argmax", IDS, shape=(1, 1), axis=1), IDS.argmax(1)[None])
    np.testing.assert_array_equal(run("argmax", IDS, shape=(1,), axis=1), IDS.argmax(1))
    np.testing.assert_array_equal(run("where", TRUE, IDS, OTHER, shape=(1, 7)), np.where(TRUE, IDS, OTHER))
    np.testing.assert_array_equal(run("logical_not", TRUE, shape=(1, 7), dtype="bool"), ~TRUE)
    np.testing.assert_array_equal(run("logical_and", TRUE, ~TRUE, shape=(1, 7), dtype="bool"), TRUE & ~TRUE)
    np.testing.assert_array_equal(run("logical_or", TRUE, ~TRUE, shape=(1, 7), dtype="bool"), TRUE | ~TRUE)


def test_forms() -> None:
    assert run("cast", TRUE, shape=(1, 7), dtype="int32", to=DTYPES.index("int32")).dtype == np.int32
    assert run("reshape", IDS, shape=(7, 1)).shape == (7, 1)
    np.testing.assert_array_equal(run("expand", IDS, shape=(2, 7)), np.broadcast_to(IDS, (2, 7)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="row 7 of 7"):
        run("take_at", X, np.array([7]), shape=(1, 1, 3), dtype="float32", axis=1)
    with pytest.raises(ValueError, match="add makes"):
        run("add", IDS, OTHER, shape=(1, 8))
