"""Keys and values as they are computed, and a copy in 8 bits that steps of one row read: an approximation.

The copy is a function of the rows that are kept, not of how they came: a context that was cut back steps on as a fresh
one does. A scale a head and channel is one and a half times what the largest number of all whole blocks needs, rounded
up to a power of the fourth root of 2, so that it seldom changes; a number of the open block that does not fit makes it
wider. Where a scale changes, its channel is rounded again from the rows themselves. So no number is off by more than
half a scale, and none is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.variants.in_place.rounded_steps import RoundedSteps
from twoheads.runtime.generation.kept.rows import KeptBlocks

__all__ = ["RoundedReads", "RoundedRows"]

Array = npt.NDArray[Any]

MOST = np.float32(127)
ROOM = np.float32(1.5)
"""How much larger than those of whole blocks numbers of the open block may be before a scale changes, and a step is
computed again. 120 steps of SmolLM2-135M behind 600 and 3,000 tokens of text: logits are off by 0.6 and 0.8 % and 113
and 71 steps are computed again without room, 0.9 and 1.4 %, 48 and 2 with 1.25, 1.0 and 1.0 %, 11 and 0 with 1.5, 1.2
and 2.2 % and none with 2."""

LEAST = np.float32(1e-20)
"""What the largest number counts as where all are 0, so that scales are not."""


class RoundedRows:
    """The copy: arrays of the shape of those of whole blocks, the open block's rows behind them.

    Args:
        steps: What reads it.

    Attributes:
        steps: What reads it.
        arrays: Whole numbers by the number of the kept value, ``[1, heads, capacity * block, head_dim]``, int8.
        scales: ``[heads, 1, head_dim]``, float32, likewise.
        new: The row of the last step as it was computed, ``[1, heads, 1, head_dim]``, float32, likewise.
    """

    def __init__(self, steps: RoundedSteps) -> None:
        self.steps = steps
        self._block = steps.steps.program.block_size
        shapes = {at: steps.scale(at).shape for at in steps.kept}
        self._scales, self.scales = _joined(shapes)
        self._new, new = _joined(shapes)
        self.new = {at: array[None] for at, array in new.items()}
        self.arrays: dict[int, Array] = {}
        self._rows = 0
        """Tokens whose rows are there."""
        self._whole: list[Array] = []
        """Of whole blocks the largest number of every channel."""
        self._open: Array | None = None
        """Likewise of the open block's rows that are there, or those alone that do not fit; ``None``: not known."""
        self._start = 0
        """The open block's first token."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def starts(self, start: int) -> None:
        """The open block begins at token ``start``."""
        self._start, self._open = start, None

    def forget(self, place: int) -> None:
        """The open block's rows from ``place`` are others now."""
        first = self._start + place
        if first < self._rows:
            self._rows, self._open = first, None
        del self._whole[first // self._block :]

    def reserve(self, kept: KeptBlocks) -> dict[int, Array]:
        """The arrays, with room for as many tokens as those of ``kept``."""
        for at in self.steps.kept:
            held, shape = self.arrays.get(at), kept.past[at].shape
            if held is None or held.shape[2] < shape[2]:
                self.arrays[at] = np.zeros(shape, np.int8)
                self._rows = 0
        return self.arrays

    def bring(self, kept: KeptBlocks, first: int) -> None:
        """Lets the rows of all tokens before ``first`` be there, which is the next one."""
        start = first - first % self._block
        if start != self._start:
            self.starts(start)
        while len(self._whole) * self._block < start:
            place = len(self._whole) * self._block
            self._whole.append(self._largest(kept.past, place, place + self._block))
        if self._open is None or self._rows < first:  # rows that others wrote are not looked at yet
            self._open = self._largest(kept.opened, 0, first - start)
        self._rescale(kept)
        self._round(kept, None, self._rows, first)
        self._rows = first

    def exceeded(self, kept: KeptBlocks) -> bool:
        """Whether the new row did not fit: its step is to be computed again, now that it does."""
        sizes = np.abs(self._new)
        if bool((sizes <= self._scales * MOST).all()) or self._open is None:
            return False
        self._open = np.maximum(self._open, sizes)
        return self._rescale(kept)

    def take(self, first: int) -> None:
        """The row of token ``first`` was written by a step."""
        self._rows = first + 1

    def _rescale(self, kept: KeptBlocks) -> bool:
        """Scales become those of the rows, and what has another one than before is rounded again; whether any has."""
        largest = np.zeros_like(self._scales) if self._open is None else self._open
        if self._whole:
            largest = np.maximum(largest, ROOM * np.max(self._whole, axis=0))
        needed = _scales_of(largest)
        changed = needed.view(np.int32) != self._scales.view(np.int32)  # by their bits: some may be no numbers
        self._scales[:] = needed
        found = bool(changed.any())
        if found:
            self._round(kept, changed, 0, self._rows)
        return found

    def _round(self, kept: KeptBlocks, changed: Array | None, begin: int, end: int) -> None:
        """Rounds the rows of tokens from ``begin`` to ``end``: all channels, or those that ``changed``."""
        size, offset = self._block, 0
        for at in self.steps.kept:
            heads, _, width = self.scales[at].shape
            channels: Any = slice(None)
            if changed is not None:
                of_array = changed[offset : offset + heads * width].reshape(heads, width)
                channels = np.flatnonzero(of_array.any(axis=0))
            offset += heads * width
            if changed is not None and not len(channels):
                continue
            factors = 1 / self.scales[at][..., channels]
            for start in range(begin - begin % size, end, size):
                low, high = max(begin, start), min(end, start + size)
                source, base = (kept.opened[at], start) if start >= self._start else (kept.past[at], 0)
                with np.errstate(invalid="ignore"):
                    numbers = source[0][:, low - base : high - base, channels] * factors
                    self.arrays[at][0][:, low:high, channels] = np.rint(numbers)

    def _largest(self, arrays: list[Array], begin: int, end: int) -> Array:
        """The largest number of every channel in rows ``[begin, end)``; 0 without rows."""
        parts = [arrays[at][0, :, begin:end] for at in self.steps.kept]
        return np.concatenate([np.abs(rows).max(axis=1, initial=0).reshape(-1) for rows in parts])


class RoundedReads(KeptBlocks):
    """Blocks as all others are, with that copy beside.

    Args:
        rounded: What reads the copy.
    """

    pages = "int8-steps"

    def __init__(self, rounded: RoundedSteps) -> None:
        super().__init__(rounded.steps)
        self.rounded = RoundedRows(rounded)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, those of the copy among them."""
        return super().nbytes + self.rounded.nbytes

    def write(self, first: int, rows: Mapping[int, Array], count: int, skip: int = 0) -> None:
        super().write(first, rows, count, skip)
        self.rounded.forget(first)

    def complete(self, block: int) -> bool:
        self.rounded.starts((block + 1) * self._block)
        return super().complete(block)

    def reopen(self, block: int) -> bool:
        self.rounded.starts(block * self._block)
        self.rounded.forget(0)
        return super().reopen(block)

    def open_page(self, page: list[Array]) -> None:
        super().open_page(page)
        self.rounded.forget(0)

    def clear(self, first: int) -> None:
        super().clear(first)
        self.rounded.forget(first)

    def fresh(self) -> RoundedReads:
        return RoundedReads(self.rounded.steps)


def _joined(shapes: Mapping[int, tuple[int, ...]]) -> tuple[Array, dict[int, Array]]:
    """One array of zeros, and its parts of those shapes."""
    whole = np.zeros(sum(prod(shape) for shape in shapes.values()), np.float32)
    parts: dict[int, Array] = {}
    offset = 0
    for at, shape in shapes.items():
        parts[at] = whole[offset : offset + prod(shape)].reshape(shape)
        offset += prod(shape)
    return whole, parts


def _scales_of(largest: Array) -> Array:
    """The scales of channels with these largest numbers."""
    scales: Array = np.exp2(np.ceil(4 * np.log2(np.maximum(largest, LEAST) / MOST)) / 4)
    return scales
