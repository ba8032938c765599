"""Palettes are as good as the best to a few percent, keep few values as they are, and count how often each occurs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twoheads.export.accelerators.vendors.palettes import palette


def least(weights: Any, most: int) -> float:
    """The smallest sum of squared errors of ``most`` numbers: every way to cut the sorted weights, by recursion."""
    x = np.sort(weights.astype(np.float64).reshape(-1))
    n, sums, squares = len(x), np.concatenate([[0], np.cumsum(x)]), np.concatenate([[0], np.cumsum(x**2)])
    many = np.arange(n + 1) - np.arange(n + 1)[:, None]
    cost = np.where(many > 0, squares - squares[:, None] - (sums - sums[:, None]) ** 2 / np.maximum(many, 1), np.inf)
    best = cost[0]
    for _ in range(most - 1):
        best = np.minimum(best, (best[:, None] + cost).min(0))
    return float(best[n])


def error(weights: Any, bits: int) -> float:
    numbers, indices = palette(weights, bits)
    return float(((numbers.astype(np.float64)[indices] - weights.astype(np.float64).reshape(-1)) ** 2).sum())


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("kind", ["normal", "long tails", "blocks of 4 bits"])
def test_no_numbers_are_much_better(bits: int, kind: str) -> None:
    random = np.random.default_rng(bits)
    weights = {
        "normal": random.standard_normal((16, 24)),
        "long tails": random.standard_t(3, (16, 24)),
        "blocks of 4 bits": random.integers(0, 16, (12, 32)) * random.uniform(0.5, 1.5, (12, 1)),
    }[kind].astype(np.float32)
    assert least(weights, 2**bits) * (1 - 1e-3) <= error(weights, bits) < 1.1 * least(weights, 2**bits)


def test_what_occurs_often_counts_as_often() -> None:
    weights = np.concatenate([np.linspace(0, 1, 40), np.full(1000, 0.3101), np.full(1000, 0.7402)]).astype(np.float32)
    assert error(weights, 2) < 1.05 * least(weights, 4)


def test_few_values_are_kept_and_the_rest_is_the_last() -> None:
    weights = np.array([[3, -1], [0.5, 3]], np.float16)
    numbers, indices = palette(weights, 3)
    assert numbers.dtype == np.float16
    assert numbers.tolist() == [-1, 0.5, 3, 3, 3, 3, 3, 3]
    assert (numbers[indices].reshape(2, 2) == weights).all()


def test_every_weight_has_the_nearest_number_of_its_own_dtype_and_a_second_time_the_same() -> None:
    weights = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float16)
    numbers, indices = palette(weights, 4)
    assert numbers.dtype == np.float16
    assert indices.dtype == np.uint8
    away = np.abs(weights.reshape(-1, 1).astype(np.float64) - numbers.astype(np.float64))
    assert (away[np.arange(len(indices)), indices] == away.min(-1)).all()
    for once, again in zip((numbers, indices), palette(weights, 4), strict=True):
        assert (once == again).all()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        palette(np.array([1, np.inf], np.float32), 4)
