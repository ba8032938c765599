"""Where the keys and values of a growing sequence lie: whole blocks, and the open one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.variants.steps import CAPACITIES, KeptRows, Steps

__all__ = ["KeptBlocks"]

Array = npt.NDArray[Any]


class KeptBlocks:
    """The keys and values of all layers, of as many tokens as a context has.

    Every layer has an array of whole blocks, ``[1, heads, capacity * block, head_dim]``, and one of the open block.
    Both are what step engines read, in place. What is not written is 0, as engines multiply it by weights of 0.

    Where a layer with full attention has more whole blocks than the widest engine reads, each array that is full
    becomes a *segment*, which attention reads as a tile.

    Args:
        steps: Whose.

    Attributes:
        pages: The name of their kind; ``None`` where they are as they were computed.
        rounds: Whether whole blocks are kept rounded, in other arrays than engines read.
        own: Whether the arrays are its own, so that behind whole blocks there may be the open one as well.
        capacity: Whole blocks for which there is room, as engines count them.
        past: The whole blocks of every kept value, behind the segments; none where the capacity is 0.
        segments: Full arrays of earlier blocks of the values without a ring, each a list in the order of ``past``.
        opened: The open block of every kept value.
    """

    pages: str | None = None
    rounds = False
    own = True

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._block = steps.program.block_size
        self._widest = CAPACITIES[-1]
        self._plain = [at for at, entry in enumerate(steps.kept) if entry.ring is None]
        self._rings = not self._plain
        self.capacity = 0
        self.past: list[Array] = []
        self.segments: list[list[Array]] = []
        self.opened = [_zeros(entry, self._block) for entry in steps.kept]
        self._shown = 0
        """Rows of the open block that lie behind the whole blocks, too."""
        self._page: list[Array] | None = None
        """What the next whole block is copied from, if not from the open one."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; of large ones the system provides what was written."""
        full = (array for segment in self.segments for array in segment)
        return sum(array.nbytes for array in (*full, *self.past, *self.opened))

    def reserve(self, blocks: int) -> bool:
        """Makes room for as many whole blocks; whether arrays are new, so that what was bound to them is void."""
        capacity = self._steps.capacity(blocks)
        if capacity is None or capacity <= self.capacity:
            return False
        grown: list[Array] = []
        for at, entry in enumerate(self._steps.kept):
            array = self._empty(entry, entry.blocks(capacity))
            if self.past:
                array[:, :, : self.past[at].shape[2]] = self.past[at]
                self.past[at] = array  # the old one is gone before the next is made
            grown.append(array)
        self.past, self.capacity = grown, capacity
        return True

    def write(self, first: int, rows: Mapping[int, Array], count: int, skip: int = 0) -> None:
        """Puts ``count`` rows of kept values, behind the first ``skip`` of each, into the open block from ``first``."""
        for at, new in rows.items():
            self.opened[at][:, :, first : first + count] = new[:, :, skip : skip + count]
        self._shown = min(self._shown, first)

    def show(self, numbers: Sequence[int], first: int) -> None:
        """Puts the open block's rows before token ``first``, which belongs to it, behind its whole blocks as well.

        Args:
            numbers: Of the values of which this is wanted, the same in every call.
            first: Where the next row comes.
        """
        start, count = first - first % self._block, first % self._block
        for at in numbers if self._shown < count else ():
            rows = self.opened[at][:, :, self._shown : count]
            self.past[at][:, :, start + self._shown : start + count] = rows
        self._shown = count

    def take_shown(self, numbers: Sequence[int], first: int, count: int) -> None:
        """``count`` rows from token ``first`` were written behind the whole blocks: the open block has them, too."""
        place = first % self._block
        for at in numbers:
            self.opened[at][:, :, place : place + count] = self.past[at][:, :, first : first + count]
        self._shown = place + count

    def take_row(self, first: int) -> None:
        """Row ``first`` stands behind the whole blocks and in the open block: others wrote it into both."""
        self._shown = first % self._block + 1

    def fills_segment(self, block: int) -> bool:
        """Whether whole block ``block`` has no room in arrays that are full, so that they become a segment."""
        return block >= self._widest * (len(self.segments) + 1) and not self._rings

    def release(self) -> None:
        """They are not needed any more."""

    def complete(self, block: int) -> bool:
        """The open block is whole: it becomes whole block ``block``, and the next one is open.

        Returns:
            Whether arrays are new, so that what was bound to them is void.
        """
        new, rows = self.fills_segment(block), self.opened if self._page is None else self._page
        self._shown, self._page = 0, None
        if new:
            self.segments.append([self.past[at] for at in self._plain])
            for at in self._plain:
                self.past[at] = np.zeros_like(self.past[at])
        for at, entry in enumerate(self._steps.kept):
            start, unit = self._slot(entry, block) * self._unit(entry), self._unit(entry)
            if start + unit > self.past[at].shape[2]:
                raise InternalError(f"no room for block {block} of {entry.value.name}")
            self.past[at][:, :, start : start + unit] = self._stored(rows[at])
            if rows is self.opened:
                rows[at][...] = 0
        return new

    def reopen(self, block: int) -> bool:
        """Whole block ``block`` is open again, and those behind it are gone; returns as :meth:`complete`."""
        before = len(self.segments)
        self._shown = 0
        while block < self._widest * len(self.segments):
            self._last_segment()
        for at, entry in enumerate(self._steps.kept):
            start, unit = self._slot(entry, block) * self._unit(entry), self._unit(entry)
            self._loaded(self.past[at][:, :, start : start + unit], self.opened[at])
        if self.segments and block == self._widest * len(self.segments):
            self._last_segment()  # what is behind it is empty now
        return len(self.segments) < before

    def _last_segment(self) -> None:
        """The last segment is what ``past`` is again. Forks share it: what is written to again is a copy."""
        for at, array in zip(self._plain, self.segments.pop(), strict=True):
            self.past[at] = array.copy()

    def page(self, block: int) -> list[Array]:
        """A copy of whole block ``block``, which was completed last."""
        starts = [self._slot(entry, block) * self._block for entry in self._steps.kept]
        pairs = zip(self.past, starts, strict=True)
        return [array[:, :, start : start + self._block].copy() for array, start in pairs]

    def rows(self, first: int, count: int) -> list[Array]:
        """A copy of ``count`` rows of the open block from ``first``."""
        return [array[:, :, first : first + count].copy() for array in self.opened]

    def open_page(self, page: list[Array]) -> None:
        """The open block, which is empty, is that of ``page``, to be completed at once: only then it is copied."""
        self._shown, self._page = 0, page

    def whole_block(self, at: int, block: int, blocks: int) -> Array | None:
        """Whole block ``block``, of ``blocks``, of a kept value as a view; ``None`` where a ring has forgotten it."""
        ring, array, place = self._steps.kept[at].ring, self.past[at], block
        if ring is not None:
            place = ring.slot(block)
            if ring.held(blocks).get(place) != block:
                return None
        elif block < self._widest * len(self.segments):
            segment, place = divmod(block, self._widest)
            array = self.segments[segment][self._plain.index(at)]
        else:
            place -= self._widest * len(self.segments)
        return array[:, :, place * self._block : (place + 1) * self._block]

    def clear(self, first: int) -> None:
        """Forgets the rows of the open block from ``first``."""
        self._shown = min(self._shown, first)
        for array in self.opened:
            array[:, :, first:] = 0

    def prepare(self, blocks: int) -> None:
        """Empty arrays become such as hold so many whole blocks."""
        self.reserve(blocks if self._steps.capacity(blocks) is not None else self._widest)
        while self.fills_segment(blocks - 1):
            self.segments.append([np.zeros_like(self.past[at]) for at in self._plain])

    def written(self, blocks: int) -> Iterator[Array]:
        """Every part of the arrays that holds something of so many whole blocks and the open one, in a fixed order."""
        size = self._block
        for segment in self.segments:
            yield from segment
        for array, entry in zip(self.past, self._steps.kept, strict=False):
            if entry.ring is None:
                yield array[:, :, : (blocks - self._widest * len(self.segments)) * size]
            else:
                for slot in sorted(entry.ring.held(blocks)):
                    yield array[:, :, slot * size : (slot + 1) * size]
        yield from self.opened

    def copy(self) -> KeptBlocks:
        """The same contents in arrays of their own."""
        made = self.fresh()
        made.capacity = self.capacity
        made.past = [array.copy() for array in self.past]
        made.segments = [list(segment) for segment in self.segments]
        made.opened = [array.copy() for array in self.opened]
        return made

    def fresh(self) -> KeptBlocks:
        """Empty ones of the same kind."""
        return KeptBlocks(self._steps)

    def tile(self, at: int, segment: int | None, role: int) -> Array:
        """Whole blocks of a kept value as engines read them: of a segment, or of those behind all segments.

        Args:
            at: Which value.
            segment: Which segment; ``None`` for what is behind them.
            role: 0 for keys, 1 for values: the array holds until the next of that role is asked for.
        """
        return self.past[at] if segment is None else self.segments[segment][self._plain.index(at)]

    def _unit(self, entry: KeptRows) -> int:
        """Of an array of whole blocks the places of one."""
        return self._block

    def _empty(self, entry: KeptRows, blocks: int) -> Array:
        """An array of so many whole blocks."""
        return _zeros(entry, blocks * self._block)

    def _stored(self, rows: Array) -> Array:
        """The open block as it is kept when it is whole."""
        return rows

    def _loaded(self, record: Array, into: Array) -> None:
        """And back again."""
        into[...] = record

    def _slot(self, entry: KeptRows, block: int) -> int:
        return block - self._widest * len(self.segments) if entry.ring is None else entry.ring.slot(block)


def _zeros(entry: KeptRows, rows: int) -> Array:
    return np.zeros(entry.value.block_shape(rows), entry.value.dtype)
