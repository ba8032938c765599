"""The paper's own constructions in NumPy, to count their calls: an oracle of ``M`` positions and nothing beside it.

The oracle returns normalised attention and no statistics. A synthetic token (beside the ``M`` positions, first where
the oracle is causal) recovers ``A``; a second call gives ``B / A``. Float64, one head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HIDDEN = -1e4
"""The score of a padded key: a constant that one more coordinate of queries and keys carries."""


class Oracle:
    """Softmax attention over at most ``size`` positions and a synthetic token, counting its calls."""

    def __init__(self, size: int, *, causal: bool) -> None:
        self.size = size
        self.causal = causal
        self.calls = 0

    def sums(self, q: Array, k: Array, v: Array, real: Array) -> tuple[Array, Array]:
        """``A [query]`` and ``B [query, width]`` of one sequence, in two calls; ``real`` says which keys count."""
        scores = np.where(real, q @ k.T, HIDDEN)
        total = self._call(scores, np.ones((len(k), 1)))
        # The synthetic key's value is 0 and its score 0, so y = A / (A + 1).
        a = (total / (1 - total))[:, 0]
        ratio = self._call(scores, v, synthetic_score=HIDDEN)
        return a, ratio * a[:, None]

    def _call(self, scores: Array, v: Array, synthetic_score: float = 0.0) -> Array:
        assert scores.shape[0] == scores.shape[1] <= self.size, "one sequence: as many queries as keys"
        self.calls += 1
        first = np.concatenate([np.full((len(scores), 1), synthetic_score), scores], 1)
        if self.causal:
            first = np.where(np.tri(len(scores), len(scores) + 1, 1, dtype=bool), first, -np.inf)
        weights = np.exp(first - first.max(1, keepdims=True))
        return weights[:, 1:] @ v / weights.sum(1, keepdims=True)


def full(oracle: Oracle, q: Array, k: Array, v: Array) -> Array:
    """Lemma 3.1: every pair of blocks, two calls each."""
    a, b, size = np.zeros(len(q)), np.zeros_like(v), oracle.size
    for row in range(0, len(q), size):
        for key in range(0, len(q), size):
            _add(a, b, row, oracle.sums(*_sequence(q, k, v, row, key, size)))
    return b / a[:, None]


def causal(oracle: Oracle, q: Array, k: Array, v: Array) -> Array:
    """Theorem 3.5: diagonal pairs, and off-diagonal ones as a lower triangle plus a reversed strict upper one."""
    a, b, size = np.zeros(len(q)), np.zeros_like(v), oracle.size
    for row in range(0, len(q), size):
        for key in range(0, row + 1, size):
            queries, keys, values, real = _sequence(q, k, v, row, key, size)
            _add(a, b, row, oracle.sums(queries, keys, values, real))
            if key < row:  # reversed, and moved by one position so that the diagonal is not counted twice
                turned = [np.concatenate([np.zeros_like(x[:1]), x[::-1][:-1]]) for x in (keys, values)]
                shown = np.concatenate([[False], real[::-1][:-1]])
                upper = oracle.sums(queries[::-1], turned[0], turned[1], shown)
                _add(a, b, row, (upper[0][::-1], upper[1][::-1]))
    return b / a[:, None]


def window(oracle: Oracle, q: Array, k: Array, v: Array, left: int, right: int) -> Array:
    """Theorem 5.1: chunks of ``M - r`` queries, each window a difference of two causal prefix sums."""
    result, r = np.zeros_like(v), left + right + 1
    step = oracle.size - r
    for row in range(0, len(q), step):
        first = row - left - 1  # the key of the chunk's position 0
        keys, values, real = _rows(k, first, oracle.size), _rows(v, first, oracle.size), _real(k, first, oracle.size)
        queries = _rows(q, row, step)
        nothing = np.zeros((r, q.shape[1]))
        ahead = oracle.sums(np.concatenate([nothing, queries]), keys, values, real)
        behind = oracle.sums(np.concatenate([queries, nothing]), keys, values, real)
        with np.errstate(invalid="ignore"):  # rows behind the last query see nothing and are cut off
            part = (ahead[1][r:] - behind[1][:step]) / (ahead[0][r:] - behind[0][:step])[:, None]
        result[row : row + step] = part[: len(q) - row]
    return result


def window_and_sinks(oracle: Oracle, q: Array, k: Array, v: Array, r: int, s: int) -> Array:
    """Theorem 5.1 with sinks, causal: chunks of ``M - r - s`` queries, the sinks' keys in front of the chunk's.

    The first chunk, which holds the queries between the sinks (``s <= M - r - s``), has them at their own places.
    """
    result, step = np.zeros_like(v), oracle.size - r - s
    for row in range(0, len(q), step):
        first = row - r
        index = np.concatenate([np.arange(s) if row else np.full(s, -1), np.arange(first, first + r + step)])
        there = (index >= 0) & (index < len(k))
        keys, values = (np.where(there[:, None], x[np.clip(index, 0, len(x) - 1)], 0) for x in (k, v))
        sink = index < s
        in_front = np.arange(len(index)) < s
        queries, nothing = _rows(q, row, step), np.zeros((r, q.shape[1]))
        front = np.zeros((s, q.shape[1]))
        shown = there & (in_front | ~sink) if row else there
        ahead = oracle.sums(np.concatenate([front, nothing, queries]), keys, values, shown)
        behind = oracle.sums(np.concatenate([front, queries, nothing]), keys, values, there & ~sink)
        a, b = (total[s + r :] - earlier[s : s + step] for total, earlier in zip(ahead, behind, strict=True))
        result[row : row + step] = (b / np.where(a, a, 1)[:, None])[: len(q) - row]
    return result


def _rows(x: Array, start: int, count: int) -> Array:
    """Rows ``[start, start + count)`` of ``x``, zeros where there are none."""
    index = np.arange(start, start + count)
    inside = (index >= 0) & (index < len(x))
    return np.where(inside[:, None], x[np.clip(index, 0, len(x) - 1)], 0)


def _real(x: Array, start: int, count: int) -> Array:
    index = np.arange(start, start + count)
    return (index >= 0) & (index < len(x))


def _sequence(q: Array, k: Array, v: Array, row: int, key: int, size: int) -> tuple[Array, Array, Array, Array]:
    return _rows(q, row, size), _rows(k, key, size), _rows(v, key, size), _real(k, key, size)


def _add(a: Array, b: Array, row: int, part: tuple[Array, Array]) -> None:
    stop = min(row + len(part[0]), len(a))
    a[row:stop] += part[0][: stop - row]
    b[row:stop] += part[1][: stop - row]
