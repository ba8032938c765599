"""Copying any range of tokens out of and into a store, whatever tiles it crosses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.runtime.stores import ValueStore

__all__ = ["read_tokens", "write_tokens"]

Array = npt.NDArray[Any]


def read_tokens(store: ValueStore, start: int, stop: int, target: Array, heads: slice = slice(None)) -> None:
    """Copies tokens ``[start, stop)`` of ``heads`` of a value ``[1, heads, n, width]``; ``[heads, tokens, width]``."""
    for part, at in _parts(store, start, stop):
        np.copyto(target[:, at : at + part.shape[1]], part[heads])


def write_tokens(store: ValueStore, start: int, stop: int, source: Array) -> None:
    """Copies ``source [heads, tokens, width]`` to the tokens ``[start, stop)`` of a value ``[1, heads, n, width]``."""
    for part, at in _parts(store, start, stop):
        np.copyto(part, source[:, at : at + part.shape[1]])


def _parts(store: ValueStore, start: int, stop: int) -> Iterator[tuple[Array, int]]:
    """Views ``[heads, tokens, width]`` of a range, one for each tile, and where in the range they begin."""
    size = store.block_size * store.blocks_per_tile
    at = start
    while at < stop:
        tile, offset = divmod(at, size)
        end = min(stop, (tile + 1) * size)
        yield store.tile(tile)[0][:, offset : offset + end - at], at - start
        at = end
