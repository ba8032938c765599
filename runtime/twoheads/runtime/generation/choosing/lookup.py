"""Guesses at the next tokens: what followed the same two or three tokens the last time."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["PromptLookup", "needed_guesses"]

RUNS = (3, 2)
"""Lengths of the runs of tokens that are looked up, the longest first."""

NEEDED, NEEDED_IN_PLACE, NEEDED_QUANTISED = 2.5, 1.0, 1.5
"""Guesses that must come true in a call of eight rows: it takes about so many steps of one more. The last two are those
of calls that are written in place, in float32 and with quantised weights."""

PAUSE, LONGEST_PAUSE = 32, 512
"""Tokens without guesses where they did not come true: twice as many each time, until some do."""

MOST_CREDIT = 6.0


def needed_guesses(*, in_place: bool, quantised: bool) -> float:
    """How many guesses must come true in a call of eight rows.

    Args:
        in_place: Whether such calls are written in place, which take less.
        quantised: Whether weights are quantised: their kernels gain less from several rows.
    """
    if not in_place:
        return NEEDED
    return NEEDED_QUANTISED if quantised else NEEDED_IN_PLACE


class PromptLookup:
    """Remembers where every short run of tokens ended last.

    Args:
        tokens: The sequence so far.
        most: Guesses at a time.
        needed: How many must come true in a call for it to pay; see :func:`needed_guesses`.

    Attributes:
        guessed: Tokens that were guessed so far.
        right: How many of them came true.
    """

    def __init__(self, tokens: Iterable[int], most: int, *, needed: float = NEEDED) -> None:
        self.guessed = self.right = 0
        self._most, self._needed = most, needed
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._before: dict[tuple[int, ...], int] = {}
        self._credit, self._pause, self._next_pause = 0.0, 0, PAUSE
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the sequence."""
        self._tokens.append(token)
        self._pause = max(0, self._pause - 1)
        end = len(self._tokens)
        for size in RUNS:
            if end >= size:
                run = tuple(self._tokens[end - size :])
                if run in self._ends:
                    self._before[run] = self._ends[run]
                self._ends[run] = end

    def guess(self) -> list[int]:
        """The tokens that may come; empty where there is no guess, or guesses were not worth it of late."""
        if self._pause:
            return []
        end = len(self._tokens)
        for size in RUNS:
            found = self._before.get(tuple(self._tokens[max(0, end - size) :]))
            if end > size and found is not None:
                return self._following(found)
        return []

    def _following(self, start: int) -> list[int]:
        """What follows token ``start``; behind the sequence's end the guesses themselves, where it runs in circles."""
        guesses = self._tokens[start : start + self._most]
        while len(guesses) < self._most:
            guesses.append(guesses[start - len(self._tokens)])
        return guesses

    def learn(self, guessed: int, right: int) -> None:
        """How many of the last guesses came true."""
        self.guessed += guessed
        self.right += right
        self._credit = min(MOST_CREDIT, self._credit + right - self._needed)
        if self._credit >= 0:
            self._next_pause = PAUSE
        else:
            self._credit, self._pause = 0.0, self._next_pause
            self._next_pause = min(LONGEST_PAUSE, 2 * self._next_pause)

    def close(self) -> None:
        """Nothing is held."""
