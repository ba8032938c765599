"""A check: what a comparison counts, and what makes it fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twoheads.export.verification.check import WITHIN_FLOORS, Bound, Check, Reference, compare
from twoheads.export.verification.noise_floor import noise_floor


def check(ours: Any, fused: Any, plain: Any, output: str = "hidden", bound: Bound | None = WITHIN_FLOORS) -> Check:
    fused = np.asarray(fused, np.float32)
    floors = {output: noise_floor(fused, np.asarray(plain, np.float32))}
    return compare(
        "ours", output, np.asarray(ours, np.float32), Reference("c", "theirs", {output: fused}, floors, bound)
    )


def test_the_floor_is_the_difference_or_the_least_share_of_the_magnitude() -> None:
    result = check([[1.5, -512.0]], [[1.0, -512.0]], [[1.25, -512.0]])
    assert (result.noise_floor, result.max_magnitude, result.max_abs_error) == (0.25, 512.0, 0.5)
    assert result.ratio == 2.0
    assert result.passed
    assert check([[2.0, -512.0]], [[1.0, -512.0]], [[1.25, -512.0]]).passed
    assert not check([[2.01, -512.0]], [[1.0, -512.0]], [[1.25, -512.0]]).passed
    same = check([[1.0, -8.0]], [[1.0, -8.0]], [[1.0, -8.0]])
    assert same.noise_floor == pytest.approx(1.6e-6)
    assert same.ratio == 0.0
    zero = check([[0.0]], [[0.0]], [[0.0]])
    assert zero.passed
    assert not check([[1e-9]], [[0.0]], [[0.0]]).passed


def test_a_floor_that_is_no_rounding_is_a_finding() -> None:
    just, beyond = 1000.0 * (1 + 0.9e-3), 1000.0 * (1 + 1.1e-3)
    assert check([[1000.0]], [[1000.0]], [[just]]).passed
    result = check([[1000.0]], [[1000.0]], [[beyond]])
    assert (result.rounding, result.passed) == (False, False)
    assert check([[1000.0]], [[1000.0]], [[beyond]], bound=None).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bound", [WITHIN_FLOORS, None])
def test_numbers_that_are_not_finite_fail_on_either_side(bad: float, bound: Bound | None) -> None:
    good = [[1.0, 2.0], [3.0, 4.0]]
    wrong = [[1.0, 2.0], [bad, 4.0]]
    for ours, fused, plain in ((wrong, good, good), (good, wrong, good), (good, good, wrong), (wrong, wrong, wrong)):
        result = check(ours, fused, plain, bound=bound)
        assert not result.finite
        assert not result.passed
        assert np.isfinite([result.max_abs_error, result.ratio, result.noise_floor, result.max_magnitude]).all()


def test_rows_that_never_came_fail() -> None:
    assert not check([[1.0]], [[1.0], [1.0]], [[1.0], [1.0]]).passed
    assert not check([[1.0]], [[1.0], [1.0]], [[1.0], [1.0]], bound=None).passed


def test_a_bound_of_the_relative_distance() -> None:
    ours, original = [[3.0, 4.0 + 0.25]], [[3.0, 4.0]]
    assert check(ours, original, original).relative == pytest.approx(0.05)
    assert check(ours, original, original, bound=Bound(0.051, "relative")).passed
    assert not check(ours, original, original, bound=Bound(0.049, "relative")).passed
    assert check(ours, original, original, bound=None).passed
    assert not check(ours, original, original).passed


def test_the_largest_entries_are_compared_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoheads.export.verification.noise_floor.CHUNK", 4)
    random = np.random.default_rng(0)
    fused = random.standard_normal((40, 3)).astype(np.float32)
    plain = fused + random.standard_normal((40, 3)).astype(np.float32)
    ours = fused.copy()
    ours[:10] = ours[:10, ::-1]
    found = check(ours, fused, plain, "logits")
    assert found.top1_agreement == np.mean(ours.argmax(1) == fused.argmax(1)) < 1
    assert found.noise_floor == np.abs(fused - plain).max()
    assert found.max_abs_error == np.abs(fused - ours).max()
    assert found.relative == pytest.approx(np.linalg.norm(fused - ours) / np.linalg.norm(fused))
    assert check(ours, fused, plain).top1_agreement is None


def test_embeddings_have_a_cosine() -> None:
    assert check([[0.0, 2.0]], [[1.0, 1.0]], [[1.0, 1.0]], "embedding").cosine == pytest.approx(0.5**0.5)
    assert check([[0.0, 2.0]], [[1.0, 1.0]], [[1.0, 1.0]]).cosine is None
