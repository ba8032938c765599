"""Text as it comes: what a further token adds to it, and whether it holds a text that ends it."""

from __future__ import annotations

from collections.abc import Sequence

from twoheads.runtime.bundle.tokenizer import Tokenizer

__all__ = ["TextStream"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How a decoder spells bytes that are no character yet."""

KEPT = 6
"""Tokens before the new ones that are decoded with them: a token's text may depend on its neighbours."""


class TextStream:
    """Decodes tokens one by one, in time that does not grow with their number.

    Args:
        tokenizer: The bundle's; ``None`` for no text at all.
        stops: Texts that end it.

    Attributes:
        text: All that came so far.
        stopped: Whether one of ``stops`` stands in it.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._reach = max(map(len, stops), default=0)
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that ``token`` adds; empty while a character is not complete."""
        self._tokens.append(token)
        return self._advance(last=False)

    def finish(self) -> str:
        """What is left when no token follows."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> str:
        if self._tokenizer is None:
            return ""
        first = max(0, self._shown - KEPT)
        before = self._tokenizer.decode(self._tokens[first : self._shown])
        now = self._tokenizer.decode(self._tokens[first:])
        if len(now) <= len(before) or (now.endswith(UNFINISHED) and not last):
            return ""
        new = now[len(before) :]
        self._shown = len(self._tokens)
        start = max(0, len(self.text) - self._reach)
        self.text += new
        self.stopped = self.stopped or any(stop in self.text[start:] for stop in self._stops)
        return new
