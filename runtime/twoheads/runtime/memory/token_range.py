"""Copying any range of tokens out of and into a store, whatever tiles it crosses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.runtime.memory.stores import ValueStore

__all__ = ["read_tokens", "write_tokens"]

Array = npt.NDArray[Any]


def read_tokens(store: ValueStore, start: int, stop: int, target: Array, heads: slice = slice(None)) -> None:
    """Copies tokens ``[start, stop)`` of ``heads`` of a value ``[1, heads, n, width]``; ``[heads, tokens, width]``."""
    for part, at in store.parts(start, stop):
        np.copyto(target[:, at : at + part.shape[2]], part[0, heads])


def write_tokens(store: ValueStore, start: int, stop: int, source: Array) -> None:
    """Copies ``source [heads, tokens, width]`` to the tokens ``[start, stop)`` of a value ``[1, heads, n, width]``."""
    for part, at in store.parts(start, stop):
        np.copyto(part[0], source[:, at : at + part.shape[2]])
