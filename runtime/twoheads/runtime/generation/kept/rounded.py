"""Keys and values of whole blocks as whole numbers of 8 bits, with a scale a block and head: an approximation.

A block is rounded when it is whole; the open block stays as it was computed. Its largest number becomes 127 or -127, so
none is more than half a scale off. Whoever attends to whole blocks gets them in the values' own type, a tile at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.variants.steps import KeptRows, Steps
from twoheads.runtime.generation.kept.rows import KeptBlocks

__all__ = ["RoundedBlocks"]

Array = npt.NDArray[Any]

MOST = 127
SCALE = np.dtype(np.float32)


class RoundedBlocks(KeptBlocks):
    """Such blocks: of each an int8 record, the numbers and behind them the bytes of the scale.

    Args:
        steps: Whose.
    """

    pages = "int8"
    rounds = True
    own = False

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps)
        self._scratch: dict[tuple[int, tuple[int, ...]], Array] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, those of a tile among them."""
        return super().nbytes + sum(array.nbytes for array in self._scratch.values())

    def fresh(self) -> RoundedBlocks:
        return RoundedBlocks(self._steps)

    def tile(self, at: int, segment: int | None, role: int) -> Array:
        entry, unit = self._steps.kept[at], self._unit(self._steps.kept[at])
        records = super().tile(at, segment, role)
        heads, blocks = records.shape[1], records.shape[2] // unit
        shape = entry.value.block_shape(blocks * self._block)
        if (role, shape) not in self._scratch:
            self._scratch[role, shape] = np.zeros(shape, entry.value.dtype)
        made = self._scratch[role, shape]
        _decode(records.reshape(heads, blocks, unit), made.reshape(heads, blocks, -1))
        return made

    def _unit(self, entry: KeptRows) -> int:
        _, _, rows, width = entry.value.block_shape(self._block)
        return rows * width + SCALE.itemsize

    def _empty(self, entry: KeptRows, blocks: int) -> Array:
        return np.zeros((1, entry.value.block_shape(1)[1], blocks * self._unit(entry)), np.int8)

    def _stored(self, rows: Array) -> Array:
        flat = rows.reshape(rows.shape[1], -1).astype(np.float32)
        scales = (np.abs(flat).max(axis=1) / np.float32(MOST)).astype(SCALE)[:, None]
        with np.errstate(invalid="ignore"):  # what is no number has a scale that is none, and stays so
            ratios = np.divide(flat, scales, out=np.zeros_like(flat), where=scales != 0)
        numbers = np.clip(np.rint(np.nan_to_num(ratios)), -MOST, MOST).astype(np.int8)
        return np.concatenate([numbers, scales.view(np.int8)], axis=1)[None]

    def _loaded(self, record: Array, into: Array) -> None:
        heads = record.shape[1]
        _decode(np.ascontiguousarray(record).reshape(heads, 1, -1), into.reshape(heads, 1, -1))


def _decode(records: Array, into: Array) -> None:
    """The numbers of ``records [heads, blocks, bytes]``, times their scales."""
    scales = np.ascontiguousarray(records[..., -SCALE.itemsize :]).view(SCALE)
    with np.errstate(invalid="ignore"):
        np.multiply(records[..., : -SCALE.itemsize], scales, out=into, casting="same_kind")
