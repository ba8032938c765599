"""The few numbers that stand for a group of weights: weighted k-means in one dimension, over the values that occur.

A vendor's own clusters every number of a group: SmolLM2's 14,600 groups of 9,216 numbers and more take hours with 256
entries. Sorted, a cluster is a run of neighbouring values, whose sums are differences of running sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

ROUNDS = 100
"""Of the refinement, at most; it ends where nothing moves."""


def palette(weights: npt.NDArray[Any], bits: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """The numbers of a group, ascending, and each weight's index into them. Equal weights give equal palettes.

    Neighbouring values are merged where that costs least (Ward's rule) until ``2 ** bits`` are left; then values go to
    the nearest of these, and these to the mean of theirs (Lloyd). What is left of few values is filled with the last.

    Args:
        weights: Finite, of any shape and float dtype.
        bits: Of an index, up to 8.

    Returns:
        Numbers ``[2 ** bits]`` of the weights' dtype; indices ``[weights.size]``, in the weights' order.

    Raises:
        ValueError: A weight is not finite.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights that are not finite have no palette")
    values, places, counts = np.unique(weights, return_inverse=True, return_counts=True)
    found = values.astype(np.float64)
    if len(found) > 2**bits:
        found = _refined(found, counts, _merged(found, counts, 2**bits))
    numbers = found.astype(weights.dtype)
    nearest = np.searchsorted(_cuts(numbers.astype(np.float64)), values.astype(np.float64))
    filled = np.concatenate([numbers, np.repeat(numbers[-1:], 2**bits - len(numbers))])
    return filled, nearest[places.reshape(-1)].astype(np.uint8)


def _merged(values: Numbers, counts: npt.NDArray[Any], most: int) -> Numbers:
    """At most ``most`` means of neighbouring values: in each round the cheaper half of the pairs that share no value.

    A pair qualifies where it costs less than those on both its sides; so the cheapest always does.
    """
    values, counts = values.copy(), counts.astype(np.float64)
    while len(values) > most:
        cost = counts[1:] * counts[:-1] / (counts[1:] + counts[:-1]) * np.diff(values) ** 2
        around = np.concatenate([[np.inf], cost, [np.inf]])
        pairs = np.flatnonzero((cost < around[:-2]) & (cost <= around[2:]))
        pairs = pairs[np.argsort(cost[pairs], kind="stable")][: min(len(values) - most, -(-len(pairs) // 2))]
        both = counts[pairs] + counts[pairs + 1]
        values[pairs] = (values[pairs] * counts[pairs] + values[pairs + 1] * counts[pairs + 1]) / both
        counts[pairs] = both
        values, counts = np.delete(values, pairs + 1), np.delete(counts, pairs + 1)
    return values


def _refined(values: Numbers, counts: npt.NDArray[Any], means: Numbers) -> Numbers:
    """The means moved until each is that of the values which are nearest to it."""
    number = np.concatenate([[0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * values)])
    for _ in range(ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(values, _cuts(means)), [len(values)]])
        many = np.diff(number[ends])
        moved = np.where(many > 0, np.diff(total[ends]) / np.maximum(many, 1), means)
        if np.array_equal(moved, means):
            break
        means = moved
    return means


def _cuts(means: Numbers) -> Numbers:
    """Where the nearest of ascending numbers is the next."""
    return (means[1:] + means[:-1]) / 2
