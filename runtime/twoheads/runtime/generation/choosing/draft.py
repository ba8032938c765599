"""Guesses at the next tokens by a smaller model, and what all who guess have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DraftGuesses", "Drafting", "Guesser"]

FIRST = 4
"""Guesses of the first call; later ones have one more than came true the last time."""

NEEDED = 1.0
"""Guesses that must come true in a call: one saves a step, and guessing costs less than that."""

PAUSE = 32
"""Tokens without guesses where they did not come true."""

MOST_CREDIT = 8.0


class Guesser(Protocol):
    """What guesses the next tokens of one sequence.

    Attributes:
        guessed: Tokens that were guessed so far, as told by :meth:`learn`.
        right: How many of them came true.
    """

    guessed: int
    right: int

    def add(self, token: int) -> None:
        """One more token of the sequence."""
        ...

    def guess(self, most: int) -> list[int]:
        """The tokens that may come, at most so many; empty where there is no guess, or it would not be worth it."""
        ...

    def learn(self, guessed: int, right: int) -> None:
        """How many of the last guesses came true."""
        ...

    def close(self) -> None:
        """No more guesses are asked for."""
        ...


class Drafting(Protocol):
    """What a draft needs of a context of the smaller model."""

    @property
    def tokens(self) -> list[int]:
        """The sequence."""
        ...

    def append(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Adds tokens; the logits behind them."""
        ...

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Adds one token; the logits behind it."""
        ...

    def steps(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Adds few tokens; the logits behind each."""
        ...

    def rollback(self, length: int) -> None:
        """Forgets all tokens but the first ``length``."""
        ...

    def close(self) -> None:
        """Lets the memory go."""
        ...


class DraftGuesses:
    """Guesses what a smaller model of the same vocabulary finds most likely.

    Its own context follows the sequence: what was guessed wrong is cut off again.

    Args:
        context: An empty one of the smaller model.
        tokens: The sequence so far.
        most: Guesses at a time.

    Attributes:
        guessed: Tokens that were guessed so far.
        right: How many of them came true.
    """

    def __init__(self, context: Drafting, tokens: Sequence[int], most: int) -> None:
        self.guessed = self.right = 0
        self._context, self._tokens, self._most = context, list(tokens), most
        self._next, self._pause, self._credit = min(FIRST, most), 0, 0.0

    def add(self, token: int) -> None:
        """One more token of the sequence."""
        self._tokens.append(token)
        self._pause = max(0, self._pause - 1)

    def guess(self, most: int) -> list[int]:
        """The tokens that may come, at most so many; empty where guesses were not worth it of late."""
        most = min(most, self._next)
        if self._pause or most < 1:
            return []
        found: list[int] = []
        logits: npt.NDArray[Any] = self._follow()
        while len(found) < most:
            found.append(int(logits.argmax()))
            if len(found) < most:
                logits = self._context.step(found[-1])
        return found

    def learn(self, guessed: int, right: int) -> None:
        """How many of the last guesses came true."""
        self.guessed += guessed
        self.right += right
        self._next = min(self._most, right + 1 if right < guessed else guessed + 2)
        self._credit = min(MOST_CREDIT, self._credit + right - NEEDED)
        if self._credit < -2 * NEEDED:
            self._credit, self._pause = 0.0, PAUSE

    def close(self) -> None:
        """Lets the context's memory go."""
        self._context.close()

    def _follow(self) -> npt.NDArray[np.float32]:
        """Brings the context to the sequence; the logits behind it."""
        context, tokens = self._context, self._tokens
        same = 0
        while same < min(len(context.tokens), len(tokens) - 1) and context.tokens[same] == tokens[same]:
            same += 1
        if same < len(context.tokens):
            context.rollback(same)
        left = tokens[same:]
        if len(left) == 1:
            return context.step(left[0])
        row: npt.NDArray[np.float32] = context.append(left) if len(left) > self._most + 1 else context.steps(left)[-1]
        return row
