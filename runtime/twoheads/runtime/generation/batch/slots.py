"""Where the keys and values of many sequences lie: each has a slot of arrays that one attention engine reads whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.kept.rows import KeptBlocks

__all__ = ["Group", "Numbers", "Pool", "Slab", "Slabs", "Slots", "SlottedBlocks", "groups_of"]

Array = npt.NDArray[Any]

Numbers: TypeAlias = "npt.NDArray[np.int64] | slice"
"""Of an axis: neighbours are a slice, which takes no copy."""


class Slots(ABC):
    """Arrays of places for :data:`SLOTS` sequences.

    Args:
        capacity: Whole blocks of each slot, as engines count them.

    Attributes:
        capacity: As given.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(SLOTS))

    @property
    @abstractmethod
    def arrays(self) -> tuple[Array, ...]:
        """All of them; a slot is a place along the first axis of each."""

    @property
    def used(self) -> int:
        """Slots that are taken."""
        return SLOTS - len(self._free)

    def take(self) -> int:
        """A free slot.

        Raises:
            InternalError: There is none.
        """
        if not self._free:
            raise InternalError("a slab has no free slot")
        return self._free.pop(0)

    def give_back(self, slot: int) -> None:
        """The slot is free again."""
        self._free.append(slot)
        self._free.sort()


class Slab(Slots):
    """The kept keys and values of :data:`SLOTS` sequences of one capacity.

    A slot's part of an array is contiguous and has the shape that a sequence's own array would have, so engines of one
    sequence are bound to it as they are.

    Args:
        steps: Whose.
        capacity: Whole blocks of each slot, as engines count them.

    Attributes:
        past: Of every kept value ``[slots, heads, whole blocks, head_dim]``; none where the capacity is 0.
        opened: Of every kept value ``[slots, heads, block, head_dim]``.
    """

    def __init__(self, steps: Steps, capacity: int) -> None:
        super().__init__(capacity)
        block = steps.program.block_size
        self.opened = [_zeros(entry.value.block_shape(block), entry.value.dtype) for entry in steps.kept]
        self.past: list[Array] = []
        if capacity:
            self.past = [
                _zeros(entry.value.block_shape(entry.blocks(capacity) * block), entry.value.dtype)
                for entry in steps.kept
            ]
        self._clean = set(self._free)

    @property
    def arrays(self) -> tuple[Array, ...]:
        return (*self.past, *self.opened)

    def take(self) -> int:
        """A free slot, all of whose numbers are 0: what another sequence left may be NaN, and a weight of 0 keeps that.

        Raises:
            InternalError: There is none.
        """
        slot = super().take()
        if slot not in self._clean:
            for array in self.arrays:
                array[slot] = 0
        self._clean.discard(slot)
        return slot


def _zeros(shape: tuple[int, ...], dtype: str) -> Array:
    return np.zeros((SLOTS, *shape[1:]), dtype)


S = TypeVar("S", bound=Slots)


@dataclass(frozen=True, slots=True)
class Group(Generic[S]):
    """The rows of a call whose sequences have slots of one slab.

    Attributes:
        slab: Which.
        rows: Their numbers in the call.
        slots: Their slots.
        at_rows, at_slots: The same as an index of an array.
    """

    slab: S
    rows: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    at_rows: Numbers
    at_slots: Numbers


def groups_of(places: Sequence[tuple[S, int]]) -> list[Group[S]]:
    """The rows by slab; ``places`` has the slab and the slot of each."""
    slabs: dict[int, list[int]] = {}
    for at, (slab, _) in enumerate(places):
        slabs.setdefault(id(slab), []).append(at)
    made: list[Group[S]] = []
    for found in slabs.values():
        rows, slots = np.array(found), np.array([places[at][1] for at in found], np.int64)
        made.append(Group(places[found[0]][0], rows, slots, _as_index(rows), _as_index(slots)))
    return made


def _as_index(numbers: npt.NDArray[np.int64]) -> Numbers:
    first = int(numbers[0])
    return slice(first, first + len(numbers)) if (np.diff(numbers) == 1).all() else numbers


class Pool(Generic[S]):
    """All slots of a kind; arrays are made when no others of their capacity have a free slot, and let go when empty.

    Args:
        steps: Of what the sequences are.
        make: Makes arrays of a capacity.

    Attributes:
        steps: As given.
    """

    def __init__(self, steps: Steps, make: Callable[[Steps, int], S]) -> None:
        self.steps = steps
        self._make = make
        self._slabs: list[S] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; of large ones the system provides what was written."""
        return sum(array.nbytes for slab in self._slabs for array in slab.arrays)

    def take(self, capacity: int) -> tuple[S, int]:
        """A slab of this capacity, and a slot of it that is the caller's now."""
        free = (slab for slab in self._slabs if slab.capacity == capacity and slab.used < SLOTS)
        slab = next(free, None)
        if slab is None:
            slab = self._make(self.steps, capacity)
            self._slabs.append(slab)
        return slab, slab.take()

    def give_back(self, slab: S, slot: int) -> None:
        """The slot is free again."""
        slab.give_back(slot)
        if not slab.used:
            self._slabs.remove(slab)


class Slabs(Pool[Slab]):
    """All slabs of a batch.

    Args:
        steps: Whose keys and values they hold.
    """

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, Slab)


class SlottedBlocks(KeptBlocks):
    """Keys and values in a slot. Behind the widest capacity they move into arrays of their own.

    Args:
        slabs: Where slots are.

    Attributes:
        place: The slab and the slot; ``None`` once they have moved.
    """

    own = False

    def __init__(self, slabs: Slabs) -> None:
        super().__init__(slabs.steps)
        self._slabs = slabs
        self.place: tuple[Slab, int] | None = None
        self._move(0)

    def reserve(self, blocks: int) -> bool:
        if self.place is None:
            return super().reserve(blocks)
        capacity = self._steps.capacity(blocks)
        if capacity is None or capacity <= self.capacity:
            return False
        self._move(capacity)
        return True

    def complete(self, block: int) -> bool:
        moved = self.place is not None and self.fills_segment(block)
        if moved:
            self.leave()
        return super().complete(block) or moved

    def leave(self) -> None:
        """They move into arrays of their own: the sequence does not step with the others any more."""
        past, opened = [array.copy() for array in self.past], [array.copy() for array in self.opened]
        self.release()
        self.past, self.opened = past, opened

    def release(self) -> None:
        if self.place is not None:
            self._slabs.give_back(*self.place)
            self.place = None

    def _move(self, capacity: int) -> None:
        """Takes a slot of this capacity, with what the old one holds."""
        slab, slot = self._slabs.take(capacity)
        past, opened = ([array[slot : slot + 1] for array in arrays] for arrays in (slab.past, slab.opened))
        if self.place is not None:
            for new, old in zip((*past, *opened), (*(self.past or past), *self.opened), strict=True):
                if new is not old:
                    new[:, :, : old.shape[2]] = old
        self.release()
        self.place, self.past, self.opened, self.capacity = (slab, slot), past, opened, capacity
