"""Guesses at the next tokens by a smaller model, and what all who guess have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DraftGuesses", "Drafting", "Guesser"]

FEWEST = 4
"""Guesses of the first call; later ones have one more than came true the last time, and no fewer than these, as a call
takes as long whatever it computes."""

PAUSE = 64
"""Tokens without guesses where these did not pay: twice as many each time, until some do. Behind a pause the smaller
model reads all that came meanwhile, so trials must be rare."""

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

    Its own context follows the sequence: what was guessed wrong is cut off again. What calls for guesses gained is the
    credit, less what they cost, the smaller model's steps among it; where there is none left, no guesses are made for a
    while. Of a model that is so large that right guesses alone would cost more than they gain, none are made.

    Args:
        context: An empty one of the smaller model.
        tokens: The sequence so far.
        most: Guesses at a time.
        needed: Steps that a call for guesses takes beyond one.
        share: What a step of the smaller model takes, in steps of the model.
        longest: Tokens that the smaller model takes at most; ``None`` for any number.

    Attributes:
        guessed: Tokens that were guessed so far.
        right: How many of them came true.
    """

    def __init__(
        self,
        context: Drafting,
        tokens: Sequence[int],
        most: int,
        *,
        needed: float,
        share: float,
        longest: int | None = None,
    ) -> None:
        self.guessed = self.right = 0
        self._context, self._tokens, self._most = context, list(tokens), most
        self._needed, self._share, self._longest = needed, share, longest
        self._next, self._pause, self._next_pause = min(FEWEST, most), 0, PAUSE
        self._credit = self._spent = 0.0

    def add(self, token: int) -> None:
        """One more token of the sequence."""
        self._tokens.append(token)
        self._pause = max(0, self._pause - 1)

    def guess(self, most: int) -> list[int]:
        """The tokens that may come, at most so many; empty where guesses would not be worth it, or were not of late."""
        if self._longest is not None:
            most = min(most, self._longest - len(self._tokens))
        if self._pause or most * (1 - self._share) <= self._needed:  # nor would it gain if all came true
            return []
        found: list[int] = []
        logits: npt.NDArray[Any] = self._follow()
        while len(found) < min(most, self._next):
            if found:
                logits = self._context.step(found[-1])
            found.append(int(logits.argmax()))
        self._spent += self._share * (len(found) - 1)
        return found

    def learn(self, guessed: int, right: int) -> None:
        """How many of the last guesses came true."""
        self.guessed += guessed
        self.right += right
        self._next = min(self._most, max(FEWEST, right + 1 if right < guessed else guessed + 2))
        self._credit = min(MOST_CREDIT, self._credit + right - self._needed - self._spent)
        if self._credit >= 0:
            self._next_pause = PAUSE
        else:
            self._credit, self._pause, self._next_pause = 0.0, self._next_pause, 2 * self._next_pause

    def close(self) -> None:
        """Lets the context's memory go."""
        self._context.close()

    def _follow(self) -> npt.NDArray[np.float32]:
        """Brings the context to the sequence, and notes what that takes; the logits behind it.

        What came before guesses were wanted, a prompt or a pause, is read whatever they turn out to be worth.
        """
        context, tokens = self._context, self._tokens
        same = 0
        while same < min(len(context.tokens), len(tokens) - 1) and context.tokens[same] == tokens[same]:
            same += 1
        if same < len(context.tokens):
            context.rollback(same)
        left = tokens[same:]
        if len(left) <= 2:  # as many as come where all guesses were right: the last of them, and the one behind it
            self._spent = self._share * len(left)
            return [context.step(token) for token in left][-1]
        if len(left) <= self._most + 1:
            self._spent = self._share * (1 + self._needed)
            row: npt.NDArray[np.float32] = context.steps(left)[-1]
            return row
        self._spent = 0.0
        return context.append(left)
