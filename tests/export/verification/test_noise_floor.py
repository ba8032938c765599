"""The yardstick of verification: the noise floor, and what a comparison with it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twoheads.export.verification.noise_floor import Comparator, Floor, noise_floor, pooled_floor, widest


def compare(ours: Any, fused: Any, plain: Any, **options: Any) -> Comparator:
    fused = np.asarray(fused, np.float32)
    comparator = Comparator(fused, noise_floor(fused, np.asarray(plain, np.float32)), **options)
    comparator.write(0, np.asarray(ours, np.float32))
    return comparator


def test_the_floor_is_the_difference_or_the_least_share_of_the_magnitude() -> None:
    result = compare([[1.5, -8.0]], [[1.0, -8.0]], [[1.25, -8.0]]).result()
    assert (result.noise_floor, result.max_magnitude, result.max_abs_error) == (0.25, 8.0, 0.5)
    assert result.ratio == 2.0
    assert result.passed
    assert compare([[2.0, -8.0]], [[1.0, -8.0]], [[1.25, -8.0]]).result().passed
    assert not compare([[2.01, -8.0]], [[1.0, -8.0]], [[1.25, -8.0]]).result().passed
    same = compare([[1.0, -8.0]], [[1.0, -8.0]], [[1.0, -8.0]]).result()
    assert same.noise_floor == pytest.approx(1.6e-6)
    assert same.ratio == 0.0
    zero = compare([[0.0]], [[0.0]], [[0.0]]).result()
    assert zero.passed
    assert not compare([[1e-9]], [[0.0]], [[0.0]]).result().passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_fail_on_either_side(bad: float) -> None:
    good = [[1.0, 2.0], [3.0, 4.0]]
    wrong = [[1.0, 2.0], [bad, 4.0]]
    for ours, fused, plain in ((wrong, good, good), (good, wrong, good), (good, good, wrong), (wrong, wrong, wrong)):
        result = compare(ours, fused, plain).result()
        assert not result.finite
        assert not result.passed
        assert np.isfinite([result.max_abs_error, result.ratio, result.noise_floor, result.max_magnitude]).all()


def test_rows_that_never_came_fail() -> None:
    assert not compare([[1.0]], [[1.0], [1.0]], [[1.0], [1.0]]).result().passed


def test_the_largest_entries_are_compared_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoheads.export.verification.noise_floor.CHUNK", 4)
    random = np.random.default_rng(0)
    fused = random.standard_normal((40, 3)).astype(np.float32)
    plain = fused + random.standard_normal((40, 3)).astype(np.float32)
    ours = fused.copy()
    ours[:10] = ours[:10, ::-1]
    comparator = compare(ours, fused, plain, ranks=True)
    assert comparator.agreement == np.mean(ours.argmax(1) == fused.argmax(1)) < 1
    assert comparator.result().noise_floor == np.abs(fused - plain).max()
    assert comparator.result().max_abs_error == np.abs(fused - ours).max()


def test_the_widest_floor_counts() -> None:
    one = Floor(1.0, 8.0, finite=True)
    assert widest(one, Floor(2.0, 8.0, finite=True)).value == 2.0
    assert widest(one, Floor(0.5, 8.0, finite=True)).value == 1.0
    assert not widest(one, Floor(0.5, 8.0, finite=False)).finite


def test_a_floor_of_one_row_is_not_below_that_of_what_it_comes_from() -> None:
    hidden = Floor(0.5, 8.0, finite=True)
    assert pooled_floor(Floor(0.01, 2.0, finite=True), hidden) == Floor(0.125, 2.0, finite=True)
    assert pooled_floor(Floor(0.25, 2.0, finite=True), hidden).value == 0.25
