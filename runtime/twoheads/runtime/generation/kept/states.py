"""The states of a growing sequence's scans: at the beginning of its open block, and behind its last token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.variants.steps import Steps

__all__ = ["KeptStates"]

Array = npt.NDArray[Any]


class KeptStates:
    """The states of all scans of a context; nothing where there are none.

    A state can't be cut back: what is computed again begins with the open block, or with the one before.

    Args:
        steps: Whose.

    Attributes:
        position: That behind the last token.
        spare: Arrays for the next states, which :meth:`move` makes those of the new position.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.position = self._start = self._earlier = 0
        self._before, self._first, self._now, self.spare = (
            [np.zeros(port.shape, port.dtype) for port in steps.states] for _ in range(4)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return 4 * sum(array.nbytes for array in self._now)

    def before(self, position: int) -> list[Array]:
        """The states before the token at ``position``: the open block's first, or the next one.

        Raises:
            InternalError: It is another one.
        """
        if not self._now or position == self._start:
            return self._first
        if position != self.position:
            raise InternalError(f"no state before token {position}, but before {self._start} and {self.position}")
        return self._now

    def move(self, position: int) -> None:
        """:attr:`spare` holds the states before ``position``."""
        self._now, self.spare = self.spare, self._now
        self.position = position

    def complete(self) -> None:
        """The open block is whole, the next one begins."""
        self._before, self._first = self._first, self._before
        for first, now in zip(self._first, self._now, strict=True):
            first[...] = now
        self._earlier, self._start = self._start, self.position

    def cut(self, position: int) -> None:
        """Back to the beginning of the open block, or of the one before it, which is open then.

        Raises:
            InternalError: ``position`` is neither.
        """
        if self._now and position != self._start:
            if position != self._earlier:
                raise InternalError(f"no state before token {position}, but before {self._earlier} and {self._start}")
            self._before, self._first = self._first, self._before
            self._start = self._earlier
        self.position = position

    @property
    def earlier(self) -> int:
        """Where the block before the open one begins."""
        return self._earlier

    def restore(self, earlier: int, start: int, position: int) -> bool:
        """The arrays of :meth:`written` hold the states before these positions; ``False`` where these are none."""
        if not 0 <= earlier <= start <= position:
            return False
        self._earlier, self._start, self.position = earlier, start, position
        return True

    def written(self) -> Iterator[Array]:
        """All arrays that hold a state, in a fixed order."""
        yield from (*self._before, *self._first, *self._now)

    def page(self) -> list[Array]:
        """A copy of the states before the open block."""
        return [array.copy() for array in self._first]

    def open_page(self, page: list[Array], position: int) -> None:
        """The states before ``position``, where the open block ends, are those of ``page``, to be completed."""
        for array, state in zip(self.spare, page, strict=True):
            array[...] = state
        self.move(position)

    def copy(self) -> KeptStates:
        """The same states in arrays of their own."""
        made = KeptStates(self._steps)
        made.position, made._start, made._earlier = self.position, self._start, self._earlier
        pairs = ((made._before, self._before), (made._first, self._first), (made._now, self._now))
        for new, old in (pair for mine, theirs in pairs for pair in zip(mine, theirs, strict=True)):
            new[...] = old
        return made
