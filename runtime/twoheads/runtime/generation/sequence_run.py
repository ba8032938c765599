"""One sequence on its way: tokens are chosen one after the other, computed, and guessed if that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.runtime.generation.choosing.chooser import Chooser
from twoheads.runtime.generation.choosing.constraint import Constraint
from twoheads.runtime.generation.choosing.draft import Guesser
from twoheads.runtime.generation.choosing.processors import LogitsProcessor, processors
from twoheads.runtime.generation.choosing.settings import Settings
from twoheads.runtime.generation.choosing.warpers import log_probability
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.encoder import Unread
from twoheads.runtime.generation.generated import Generated, Piece
from twoheads.runtime.generation.text.text_stream import TextStream
from twoheads.runtime.reports.peak_memory import peak_memory

__all__ = ["Call", "SequenceRun"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``generate``: what it continues, and how.

    Attributes:
        context: What is continued; the prompt is not in it yet.
        kept: Whether the context is the caller's.
        prompt: Tokens to append.
        settings: How tokens are chosen.
        own: The caller's processors.
        seeds: Of every sequence; ``None`` for the most likely tokens.
        logits: Whether they are kept.
        guesser: Makes what guesses the tokens behind a sequence, if they are guessed.
        steady: Whether all tokens are computed by kernels of several rows.
        constraint: What the text keeps to, if anything.
        began: When the call began.
        calls: Engine calls before it, of all that the bundle generates.
        unread: What an encoder reads first, where it is not to run yet: the prompt is as long as it will be.
    """

    context: Context
    kept: bool
    prompt: list[int]
    settings: Settings
    own: tuple[LogitsProcessor, ...]
    seeds: tuple[np.random.SeedSequence | None, ...]
    logits: bool
    guesser: Callable[[Sequence[int]], Guesser] | None
    steady: bool
    constraint: Constraint | None
    began: float
    calls: int
    unread: Unread | None = None


class SequenceRun:
    """One sequence on its way.

    Args:
        call: What it is part of.
        context: Its own.
        seed: Its own; ``None`` for the most likely tokens.
        text: Makes what turns tokens into text, for texts to stop at.

    Attributes:
        ended: Whether no other token comes.
        guessed: Tokens that were guessed so far.
        right: Those of them that came true.
    """

    def __init__(
        self,
        call: Call,
        context: Context,
        seed: np.random.SeedSequence | None,
        text: Callable[[Sequence[str]], TextStream],
    ) -> None:
        self._context, self._settings, self._keep = context, call.settings, call.logits
        self._prompt = len(context)
        self._own, self._seed, self._new_guesser = call.own, seed, call.guesser
        self._guesser: Guesser | None = None
        self._constraint, self._steady = call.constraint, call.steady
        self.ended = False
        self.guessed = self.right = 0
        self._began, self._first, self._last = call.began, 0.0, 0.0
        self._pieces: list[Piece] = []
        self._text = text(call.settings.stop_strings)
        self._reason = "length"

    def begin(self) -> None:
        """The prompt is in the context: what the rules begin with."""
        self._prompt = len(self._context)
        own = self._own
        if self._constraint is not None:
            own = (self._constraint.processor(self._prompt), *own)
        self._chooser = Chooser(processors(self._settings, self._prompt, own), self._seed)
        self._most, self._tokens = self._settings.new_tokens(self._prompt), list(self._context.tokens)
        self.ended = self._most < 1

    def choose(self, logits: npt.NDArray[np.float32]) -> Piece:
        """The next token, by the logits ``[classes]`` behind those so far; :attr:`ended` says whether it is the last.

        Raises:
            InputError: No token may come.
        """
        token = self._chooser.choose(self._tokens, logits)
        self._tokens.append(token)
        last = len(self._pieces) + 1 == self._most
        piece = self._piece(token, logits, last=last)
        self.ended = self._has_ended(token) or last
        return piece

    def pieces(self, logits: npt.NDArray[np.float32]) -> Iterator[Piece]:
        """The new tokens behind ``logits``, as they are chosen.

        Where tokens are guessed, several are computed in one call, and each is chosen as if it had come alone: a guess
        that is what is chosen saves a call, any other one is cut off again.
        """
        context = self._context
        self.begin()
        guesser = self._guesser = None if self._new_guesser is None else self._new_guesser(context.tokens)
        rows, guesses = [logits], list[int]()
        while not self.ended:
            piece = self.choose(rows.pop(0))
            yield piece
            if self.ended:
                break
            if guesser is not None:
                guesser.add(piece.token)
            if guesses and guesses.pop(0) == piece.token:
                self.right += 1
                continue
            if len(context) >= len(self._tokens):
                context.rollback(len(self._tokens) - 1)
            rows, guesses = self._advance(guesser, piece.token)

    def _advance(self, guesser: Guesser | None, token: int) -> tuple[list[npt.NDArray[np.float32]], list[int]]:
        """Computes ``token``, with guesses behind it if there are any; the logits behind each, and the guesses."""
        if guesser is not None:
            if self.guessed > guesser.guessed:
                guesser.learn(self.guessed - guesser.guessed, self.right - guesser.right)
            # The last token needs no guess behind it; and a block that a guess filled is computed again if it is wrong.
            left = min(self._most - len(self._pieces), self._context.left_in_block - 1) - 1
            if guesses := guesser.guess(left):
                self.guessed += len(guesses)
                return list(self._context.steps([token, *guesses])), guesses
        if self._steady:
            return list(self._context.steps([token])), []
        return [self._context.step(token)], []

    def close(self, *, kept: bool) -> None:
        """Ends it: a context that is kept gets the last token as well, any other one is closed."""
        total = self._prompt + len(self._pieces)
        if self._guesser is not None:
            self._guesser.close()
        if not kept:
            self._context.close()
        elif self._pieces:
            context, last = self._context, self._pieces[-1].token
            # Where the last token was chosen there may be a guess, which nobody compared, and others behind it.
            same = len(context) >= total and context.tokens[total - 1] == last
            if len(context) >= total:
                context.rollback(total if same else total - 1)
            if not same:
                context.step(last)

    def _piece(self, token: int, logits: npt.NDArray[np.float32], *, last: bool) -> Piece:
        text = self._text.add(token)
        if last or token in self._settings.eos_token_id:
            text += self._text.finish()
        self._last = time.perf_counter()
        self._first = self._first or self._last
        piece = Piece(token, text, log_probability(logits, token), logits if self._keep else None)
        self._pieces.append(piece)
        return piece

    def _has_ended(self, token: int) -> bool:
        limit = self._settings.max_time
        if token in self._settings.eos_token_id:
            self._reason = "eos"
        elif self._text.stopped:
            self._reason = "stop"
        elif limit is not None and time.perf_counter() - self._began > limit:
            self._reason = "time"
        return self._reason != "length"

    def result(self) -> Generated:
        """All of it; the number of calls and the warnings are the caller's to add."""
        pieces, first = self._pieces, self._first - self._began
        spent = self._last - self._first
        rate = (len(pieces) - 1) / spent if len(pieces) > 1 and spent > 0 else 1 / first if pieces else 0.0
        kept = [piece.logits for piece in pieces if piece.logits is not None]
        return Generated(
            tokens=[piece.token for piece in pieces],
            text=self._text.text,
            prompt_tokens=self._prompt,
            finish_reason=self._reason,
            first_token_seconds=first if pieces else 0.0,
            tokens_per_second=rate,
            engine_calls=0,
            peak_bytes=peak_memory(),
            logprobs=[piece.logprob for piece in pieces],
            logits=np.stack(kept) if kept else None,
            source_tokens=self._context.source.tokens,
            guessed_tokens=self.guessed,
            right_guesses=self.right,
        )
