"""Theorem 4.2's codes: columns that make one long attention block-diagonal without a mask.

Request ``i`` has a code ``u_i`` of ``r`` entries, half of them ``B`` and half 0, distinct for each request; its keys
carry ``v_i``, which is ``-B`` where ``u_i`` is 0, and 0 elsewhere. Then ``<u_i, v_i>`` is 0 as a sum of exact zeros:
the scores within a request do not change by a single bit. For ``i != j`` some ``B`` of ``u_i`` meets a ``-B`` of
``v_j``, so that ``<u_i, v_j> <= -B^2``: a weight of 0. There are ``C(r, r/2)`` such codes, so ``r`` is
``O(log(requests))``.

In theory ``B`` must beat the spread of the scores, which has no bound. Because the zeros are exact, ``B`` may be as
large as float32 allows without costing any precision: ``B^2 = 2^40``, about 1e12. A run still bounds the largest score
that its queries and keys can have, and is not packed beyond :data:`SAFE_SCORE`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

__all__ = ["ENTRY", "SAFE_SCORE", "code_capacity", "code_length", "request_codes"]

ENTRY = 2.0**20
"""``B``: a power of two, exact in every floating-point format with 8 bits of exponent."""

SAFE_SCORE = 2.0**38
"""No score may be larger: two of them and the margin that makes a weight vanish stay below ``B^2 = 2^40``."""

SHORTEST = 4
"""Tokens of a request for which codes are provided: a block of ``M`` tokens takes ``M / 4`` requests at least."""


def code_length(block_size: int) -> int:
    """``r``, the columns that codes add: the fewest for ``block_size / 4`` requests and the padding behind them."""
    length = 2
    while comb(length, length // 2) < max(2, block_size // SHORTEST) + 1:
        length += 2
    return length


def code_capacity(block_size: int) -> int:
    """The most requests of one block; one more code is for its padding."""
    length = code_length(block_size)
    return comb(length, length // 2) - 1


@lru_cache(maxsize=16)
def request_codes(block_size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Codes for queries and for keys, ``[code_capacity + 1, code_length]`` each; the last one is for padding."""
    length = code_length(block_size)
    chosen = list(combinations(range(length), length // 2))
    queries = np.zeros((len(chosen), length), np.float32)
    for code, entries in zip(queries, chosen, strict=True):
        code[list(entries)] = ENTRY
    return queries, queries - np.float32(ENTRY)
