"""Masks for tests: a strategy for random expressions, and plain enumeration to check the algebra against."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from twoheads.graphs.masks.expressions import Causal, Chunk, Full, Mask, Sinks, Window

_atoms: st.SearchStrategy[Mask] = st.one_of(
    st.just(Full()),
    st.just(Causal()),
    st.builds(Window, st.integers(-1, 70), st.integers(-1, 70)),
    st.builds(Sinks, st.integers(1, 70)),
    st.builds(Chunk, st.integers(1, 40)),
)


def _combined(inner: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    return st.one_of(st.builds(operator.and_, inner, inner), st.builds(operator.or_, inner, inner))


masks: st.SearchStrategy[Mask] = st.recursive(_atoms, _combined, max_leaves=5)
"""Random mask expressions of up to five terms."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The keyword arguments that the tile functions share."""

    block_size: int
    key_tile: int
    length: int

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def tiles(self) -> int:
        return -(-self.length // self.key_tile)

    def keywords(self) -> dict[str, int]:
        return {"block_size": self.block_size, "key_tile": self.key_tile, "length": self.length}


sizes: st.SearchStrategy[Sizes] = st.builds(
    lambda block, ratio, length: Sizes(block, block * ratio, length),
    st.sampled_from([4, 8]),
    st.integers(1, 3),
    st.integers(1, 100),
)
"""Small blocks, key tiles of one to three blocks, lengths that are mostly no multiple of either."""


def dense(mask: Mask, length: int) -> npt.NDArray[np.bool_]:
    """The whole mask of ``length`` queries and keys, term by term from the definition: bool ``[length, length]``."""
    at = np.arange(length, dtype=np.int64)
    return np.ascontiguousarray(np.broadcast_to(mask.dense(at[:, None], at[None, :]), (length, length)))


def classes(visible: npt.NDArray[np.bool_], block: int, of: Sizes) -> list[tuple[int, bool]]:
    """The non-empty tiles of a query block as ``(tile, is full)``, by looking at every pair of the dense mask."""
    rows = visible[block * of.block_size : (block + 1) * of.block_size]
    found: list[tuple[int, bool]] = []
    for tile in range(of.tiles):
        part = rows[:, tile * of.key_tile : (tile + 1) * of.key_tile]
        if part.any():
            found.append((tile, bool(part.all()) and part.shape[1] == of.key_tile))
    return found
