"""Guesses at the next tokens: what followed the same two or three tokens the last time."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["PromptLookup", "needed_guesses"]

RUNS = (3, 2)
"""Lengths of the runs of tokens that are looked up, the longest first."""

NEEDED, NEEDED_IN_PLACE, NEEDED_QUANTISED = 3.0, 1.5, 2.75
"""Guesses that must come true in a call of eight rows: it takes about so many steps of one more, and a half is margin.
The last two are those of calls that are written in place, the last with weights in 4 bits."""

PAYS = 3.0
"""The credit from which guesses are computed."""

LEAST_CREDIT, MOST_CREDIT = -4.0, 8.0
"""Bounds of it, so that what is long ago counts no more."""


def needed_guesses(*, in_place: bool, whole_numbers: bool, quantised: bool) -> float:
    """How many guesses must come true in a call of eight rows.

    Args:
        in_place: Whether such calls are written in place, which take less.
        whole_numbers: Whether products are those of whole numbers.
        quantised: Whether weights are quantised: their other kernels gain less from several rows.
    """
    if not in_place:
        return NEEDED
    return NEEDED_QUANTISED if quantised and not whole_numbers else NEEDED_IN_PLACE


class PromptLookup:
    """Remembers where every short run of tokens ended last.

    Guesses are checked before they are paid for. One that is made and not computed, a *shadow*, is compared with the
    tokens that come by single steps, and costs nothing. What calls for these guesses would have gained, and what others
    did gain, is the credit: guesses are computed while it is high enough. The beginning is looked at in the same way.

    All of it follows from the tokens, and not from time: the same call computes the same rows every time.

    Args:
        tokens: The sequence so far.
        most: Guesses at a time.
        needed: How many must come true in a call for it to pay; see :func:`needed_guesses`.

    Attributes:
        guessed: Tokens that were guessed and computed so far.
        right: How many of them came true.
    """

    def __init__(self, tokens: Iterable[int], most: int, *, needed: float = NEEDED) -> None:
        self.guessed = self.right = 0
        self._most, self._needed = most, needed
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._before: dict[tuple[int, ...], int] = {}
        self._credit = 0.0
        self._shadow: list[int] = []
        self._came = 0
        """Guesses of the shadow that came true so far."""
        for token in tokens:
            self._watch()
            self.add(token)
        self._shadow = []  # a call may begin here

    def add(self, token: int) -> None:
        """One more token of the sequence."""
        if self._shadow:
            came = token == self._shadow[self._came]
            self._came += came
            if not came or self._came == len(self._shadow):
                self._shadow = []
                self._count(self._came)
        self._tokens.append(token)
        end = len(self._tokens)
        for size in RUNS:
            if end >= size:
                run = tuple(self._tokens[end - size :])
                if run in self._ends:
                    self._before[run] = self._ends[run]
                self._ends[run] = end

    def guess(self, most: int) -> list[int]:
        """The tokens that may come, at most so many; empty where there is no guess, or it would not be worth it."""
        if self._credit >= PAYS and most > self._needed:
            self._shadow = []  # of a call that would have been too short
            return self._found()[:most]
        self._watch()
        return []

    def _watch(self) -> None:
        """Guesses become the shadow, unless tokens are compared with one."""
        if not self._shadow:
            self._shadow, self._came = self._found(), 0

    def _found(self) -> list[int]:
        """The tokens that may come; none where there is no guess."""
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
        self._count(right)

    def _count(self, right: int) -> None:
        """So many guesses came true of what a call computes, or would have."""
        self._credit = min(MOST_CREDIT, max(LEAST_CREDIT, self._credit + right - self._needed))

    def close(self) -> None:
        """Nothing is held."""
