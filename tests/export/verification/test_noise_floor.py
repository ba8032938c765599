"""The yardstick of verification: the noise floor."""

from __future__ import annotations

import numpy as np
import pytest

from twoheads.export.verification.noise_floor import Floor, largest_difference, pooled_floor, widest


def test_the_widest_floor_counts() -> None:
    one = Floor(1.0, 8.0, finite=True)
    assert widest(one, Floor(2.0, 8.0, finite=True)).value == 2.0
    assert widest(one, Floor(0.5, 8.0, finite=True)).value == 1.0
    assert not widest(one, Floor(0.5, 8.0, finite=False)).finite


def test_a_floor_of_one_row_is_not_below_that_of_what_it_comes_from() -> None:
    hidden = Floor(0.5, 8.0, finite=True)
    assert pooled_floor(Floor(0.01, 2.0, finite=True), hidden) == Floor(0.125, 2.0, finite=True)
    assert pooled_floor(Floor(0.25, 2.0, finite=True), hidden).value == 0.25


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_results_of_any_type_differ_by_numbers(dtype: str) -> None:
    assert largest_difference(np.array([[0, 1]]).astype(dtype), np.array([[1, 1]]).astype(dtype)) == (1.0, True)
