"""Where what many sequences read of their encoders lies: each has a slot of arrays that one attention engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.batch.slots import Pool, Slots
from twoheads.runtime.generation.kept.kept_source import KeptSource

__all__ = ["SlottedSource", "SourceSlab", "SourceSlabs"]

Array = npt.NDArray[Any]


class SourceSlab(Slots):
    """Keys and values of cross attention of :data:`SLOTS` sequences whose encoders' tokens need as many blocks.

    What a slot holds that nobody has reaches nobody: every slot meets its own keys alone.

    Args:
        steps: Whose.
        capacity: Blocks of an encoder's tokens in each slot.

    Attributes:
        values: Of every value of ``Steps.source`` ``[slots, heads, keys, head_dim]``.
        mask: What is added to the scores, ``[slots, 1, 1, keys]``.
    """

    def __init__(self, steps: Steps, capacity: int) -> None:
        super().__init__(capacity)
        keys = capacity * steps.program.block_size
        self.values = [np.zeros((SLOTS, *value.block_shape(keys)[1:]), value.dtype) for value in steps.source]
        self.mask = np.zeros((SLOTS, 1, 1, keys), np.float32)

    @property
    def arrays(self) -> tuple[Array, ...]:
        return (*self.values, self.mask)


class SourceSlabs(Pool[SourceSlab]):
    """All such arrays of a batch.

    Args:
        steps: Whose encoders.
    """

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, SourceSlab)


class SlottedSource(KeptSource):
    """What is read of an encoder, in a slot if one tile holds it; engines of one sequence read it there, too.

    Args:
        slabs: Where slots are.
        values: As of :class:`KeptSource`.

    Attributes:
        slot: The slab and the slot; ``None`` without an encoder, or where it needs several tiles.
    """

    def __init__(self, slabs: SourceSlabs, values: Mapping[str, Array]) -> None:
        super().__init__(slabs.steps, values)
        self.slot: tuple[SourceSlab, int] | None = None
        if not values or self.capacity is None:
            return
        slab, slot = self.slot = slabs.take(self.capacity)
        self._slabs = slabs
        own = [array[slot : slot + 1] for array in slab.values]
        for new, old in zip(own, self.tiles[0], strict=True):
            new[...] = old
        slab.mask[slot] = self.masks[0]
        self.tiles, self.masks = [own], [slab.mask[slot]]

    def release(self) -> None:
        """It is not needed any more."""
        if self.slot is not None:
            self._slabs.give_back(*self.slot)
            self.slot = None
