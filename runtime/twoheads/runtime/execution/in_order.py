"""Results that workers compute side by side, taken one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from twoheads.runtime.execution.crew import TICK_SECONDS, Crew

__all__ = ["InOrder"]

Array = npt.NDArray[Any]


class InOrder:
    """Takes each piece's rows in the order of the pieces, whoever has them first.

    A worker that is ahead leaves a copy and goes on; who has the next piece takes what waits behind it as well. So a
    sum is the same to the bit whatever the number of workers, and nobody waits but where too much does.

    Args:
        crew: Whose workers take pieces in order: so somebody has the next one.
        take: What is done with a piece's rows, by one worker at a time.
        most: Pieces that may wait.
    """

    def __init__(self, crew: Crew, take: Callable[[Any, Array], None], most: int) -> None:
        self._crew, self._take, self._most = crew, take, most
        self._next = 0
        self._waiting: dict[int, tuple[Any, Array]] = {}
        self._changed = threading.Condition()

    def give(self, number: int, what: Any, rows: Array) -> None:
        """Has ``take(what, rows)`` called in its turn; ``rows`` are the caller's again behind this.

        Args:
            number: Of the piece, counted from 0.
            what: About the rows.
            rows: What was computed.

        Raises:
            Stopped: The crew was told to stop.
        """
        with self._changed:
            while number > self._next + self._most:
                self._crew.check()
                self._changed.wait(TICK_SECONDS)
            if number != self._next:
                self._waiting[number] = what, rows.copy()
                return
        more = True
        while more:
            self._take(what, rows)
            with self._changed:
                self._next += 1
                self._changed.notify_all()
                more = self._next in self._waiting
                if more:
                    what, rows = self._waiting.pop(self._next)
