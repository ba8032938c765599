"""What shapes the distribution that a token is drawn from; a token that may not come has a logit of minus infinity.

Every function makes one that takes logits ``[classes]``, float32, and returns others. The most likely token stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "epsilon_cutoff",
    "eta_cutoff",
    "log_probability",
    "log_softmax",
    "min_p",
    "softmax",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
]

Scores: TypeAlias = npt.NDArray[np.float32]
Warp: TypeAlias = Callable[[Scores], Scores]
NEVER = np.float32(-np.inf)
TOP_H_TOKENS = 100
"""How many of the most likely tokens ``top_h`` looks at."""


def softmax(scores: Scores) -> Scores:
    """Probabilities, in float32; where all logits are minus infinity, they are no numbers."""
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(dtype=np.float32), np.float32)


def log_softmax(scores: Scores) -> Scores:
    """Their logarithms."""
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum(dtype=np.float32)), np.float32)


def log_probability(scores: Scores, at: int) -> float:
    """:func:`log_softmax` of one of them, to the bit."""
    largest = scores.max()
    return float((scores[at] - largest) - np.log(np.exp(scores - largest).sum(dtype=np.float32)))


def temperature(value: float) -> Warp:
    """Flatter above 1, sharper below."""
    return lambda scores: scores / np.float32(value)


def top_k(count: int) -> Warp:
    """The ``count`` most likely, and what is as likely as the last of them."""

    def warp(scores: Scores) -> Scores:
        kept = min(count, len(scores))
        least = np.partition(scores, len(scores) - kept)[len(scores) - kept]
        return np.where(scores < least, NEVER, scores)

    return warp


def top_p(mass: float) -> Warp:
    """The fewest of the most likely that have this probability together."""

    def warp(scores: Scores) -> Scores:
        order = np.argsort(scores, kind="stable")
        below = np.cumsum(softmax(scores[order]), dtype=np.float32) <= np.float32(1 - mass)
        below[-1] = False
        return _without(scores, order[below])

    return warp


def min_p(share: float) -> Warp:
    """Those at least so likely, as a share of the most likely."""

    def warp(scores: Scores) -> Scores:
        found = softmax(scores)
        return _without(scores, found < np.float32(share) * found.max())

    return warp


def typical_p(mass: float) -> Warp:
    """The fewest of this probability together whose information is nearest to the average."""

    def warp(scores: Scores) -> Scores:
        logs = log_softmax(scores)
        with np.errstate(invalid="ignore"):
            information = -np.nansum(logs * np.exp(logs), dtype=np.float32)
        apart = np.abs(-logs - information)
        order = np.argsort(apart, kind="stable")
        last = int((np.cumsum(softmax(scores[order]), dtype=np.float32) < np.float32(mass)).sum())
        beyond = apart > apart[order[min(last, len(order) - 1)]]
        beyond[order[0]] = False
        return _without(scores, beyond)

    return warp


def top_h(share: float) -> Warp:
    """The most likely ones whose entropy together is this share of the whole."""

    def warp(scores: Scores) -> Scores:
        order = np.argsort(-scores, kind="stable")[:TOP_H_TOKENS]
        found = softmax(scores[order])
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.nan_to_num(-found * np.log(found))
        kept = np.cumsum(terms, dtype=np.float32) <= np.float32(share) * terms.sum(dtype=np.float32)
        kept[0] = True
        made = np.full_like(scores, NEVER)
        made[order[kept]] = scores[order[kept]]
        return made

    return warp


def epsilon_cutoff(least: float) -> Warp:
    """Those at least so likely."""
    return lambda scores: _but_the_best(scores, softmax(scores) < np.float32(least))


def eta_cutoff(least: float) -> Warp:
    """Those at least so likely, or less where the distribution is flat."""

    def warp(scores: Scores) -> Scores:
        found = softmax(scores)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = np.nansum(-found * np.log(found), dtype=np.float32)
        return _but_the_best(scores, found < min(least, np.sqrt(least) * float(np.exp(-entropy))))

    return warp


def _but_the_best(scores: Scores, removed: npt.NDArray[np.bool_]) -> Scores:
    return _without(scores, removed & (scores < scores.max()))


def _without(scores: Scores, removed: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Scores:
    made = scores.copy()
    made[removed] = NEVER
    return made
