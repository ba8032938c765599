"""What is added to the scores of a step: masks over whole blocks and the open one, and biases by distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.variants.steps import HIDDEN, Added, Steps
from twoheads.runtime.bundle.weights import Weights

__all__ = ["AddedScores"]

NOWHERE = 1 << 60
"""The position of a place that holds no key: beyond every query, so that causal masks hide it."""


class AddedScores:
    """Fills the arrays of :class:`~twoheads.graphs.variants.steps.Added` for the steps of one context.

    Args:
        steps: Whose.
        weights: Where tables of biases lie.
    """

    def __init__(self, steps: Steps, weights: Weights) -> None:
        self._block = steps.program.block_size
        self._entries = [_Entry(added, weights) for added in steps.added]

    def fill(
        self, arrays: list[npt.NDArray[np.float32] | None], positions: npt.NDArray[np.int64], capacity: int
    ) -> None:
        """Writes what is added for queries at ``positions``, which lie in one block, into the ``arrays`` there are."""
        open_block = int(positions[0]) // self._block
        for entry, array in zip(self._entries, arrays, strict=True):
            if array is not None:
                entry.fill(array, positions, entry.places(open_block, capacity, self._block))

    def fill_tile(
        self,
        at: int,
        array: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int64],
        keys: npt.NDArray[np.int64],
    ) -> None:
        """Writes the ``at``-th entry's for keys at the positions ``keys`` into ``array [heads, rows, keys]``."""
        self._entries[at].fill(array, positions, keys)


class _Entry:
    """One of them."""

    def __init__(self, added: Added, weights: Weights) -> None:
        self._added = added
        bias = added.bias
        self._table = None if bias is None or bias.table is None else np.asarray(weights.view(bias.table), np.float32)
        self._slope = None if bias is None or bias.slope is None else np.asarray(weights.view(bias.slope), np.float32)
        self._known: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def places(self, open_block: int, capacity: int, block: int) -> npt.NDArray[np.int64]:
        """The position of the key at every place of a call, :data:`NOWHERE` where there is none."""
        key = (open_block, capacity)
        if self._known is None or self._known[0] != key:
            found = np.full(self._added.keys(capacity, block), NOWHERE, np.int64)
            held = dict(enumerate(range(open_block)))
            if self._added.ring is not None:
                held = self._added.ring.held(open_block)
            within = np.arange(block, dtype=np.int64)
            for slot, number in held.items():
                found[slot * block : (slot + 1) * block] = number * block + within
            found[-block:] = open_block * block + within
            self._known = key, found
        return self._known[1]

    def fill(self, array: npt.NDArray[np.float32], queries: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> None:
        """``[heads, rows, keys]``."""
        visible = self._added.mask.dense(queries[:, None], keys[None, :])
        array[...] = np.where(visible, self._bias(queries, keys), np.float32(HIDDEN))

    def _bias(self, queries: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if self._table is None and self._slope is None:
            return np.zeros((), np.float32)
        distance = np.minimum(keys, queries.max())[None, :] - queries[:, None]
        made = np.zeros((1, 1, 1), np.float32)
        if self._table is not None:
            reach = self._table.shape[1] // 2
            made = made + self._table[:, np.clip(distance, -reach, reach) + reach]
        if self._slope is not None:
            made = made + self._slope[:, None, None] * distance.astype(np.float32)
        return made
