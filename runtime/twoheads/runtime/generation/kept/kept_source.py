"""What a decoder reads of its encoder: keys and values of cross attention, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.variants.steps import CAPACITIES, HIDDEN, Steps

__all__ = ["KeptSource", "refuse_source"]

Array = npt.NDArray[Any]


class KeptSource:
    """The keys and values of all cross attentions; nothing changes them, so forks share them.

    They lie in *tiles* of as many blocks as an engine reads: one tile where an engine holds all of them, else such as
    steps read layer by layer. What lies behind the encoder's tokens is 0, and hidden by a mask.

    Args:
        steps: Whose.
        values: All of ``Steps.source`` by name, ``[1, kv_heads, m, head_dim]``; none without an encoder, or before it
            has run.

    Attributes:
        tokens: Rows of the encoder, ``m``.
        capacity: Blocks of the one tile that an engine reads, 0 without an encoder; ``None`` where there are several.
        tiles: Every tile's arrays, in the order of ``Steps.source``.
        masks: What is added to the scores of each tile, ``[1, 1, keys]``.
    """

    def __init__(self, steps: Steps, values: Mapping[str, Array]) -> None:
        self._names = [value.name for value in steps.source]
        given = [values[name] for name in self._names] if values else []
        rows = {array.shape[2] for array in given} or {0}
        if len(rows) != 1:
            raise InternalError(f"keys and values of an encoder have {sorted(rows)} rows")
        self.tokens = rows.pop()
        self.capacity = steps.source_capacity(self.tokens)
        self.blocks = CAPACITIES[-1] if self.capacity is None else self.capacity
        width = self.blocks * steps.program.block_size
        self.tiles: list[list[Array]] = []
        self.masks: list[npt.NDArray[np.float32]] = []
        for start in range(0, self.tokens, width or 1):
            self.tiles.append([_tile(array, start, width) for array in given])
            hidden = np.arange(start, start + width) >= self.tokens
            self.masks.append(np.where(hidden, np.float32(HIDDEN), np.float32(0))[None, None])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for tile in self.tiles for array in tile)

    def arrays(self) -> Iterator[Array]:
        """Every array as it was given, without what hides behind the encoder's tokens, in the order of the program."""
        for at in range(len(self._names)):
            yield np.concatenate([tile[at] for tile in self.tiles], axis=2)[:, :, : self.tokens]

    def place(self, name: str) -> int:
        """Which of a tile's arrays is the value ``name``."""
        return self._names.index(name)

    def is_whole(self, tile: int) -> bool:
        """Whether nothing of a tile lies behind the encoder's tokens."""
        return bool((tile + 1) * self.masks[tile].size <= self.tokens)


def _tile(array: Array, start: int, width: int) -> Array:
    """Rows from ``start`` in an array of its own of ``width`` rows."""
    part = array[:, :, start : start + width]
    made = np.zeros((*part.shape[:2], width, part.shape[3]), part.dtype)
    made[:, :, : part.shape[2]] = part
    return made


def refuse_source(steps: Steps, what: str, fix: str) -> None:
    """Refuses encoder-decoders where what is read of the encoder is not kept.

    Raises:
        InputError: The model is one: it has a source, which ``what``, e.g. ``no file holds``.
    """
    if steps.source:
        raise InputError(steps.program.name, f"reads the output of an encoder, which {what}", fix)
