"""What generating gives: token by token, and as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Generated", "Piece"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token.

    Attributes:
        token: Its number.
        text: What it adds to the text; empty while a character is not complete, and for special tokens.
        logprob: The logarithm of its probability by the model's own logits.
        logits: These logits ``[classes]``, where they are asked for.
    """

    token: int
    text: str
    logprob: float
    logits: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation.

    Attributes:
        tokens: The new tokens; the last may be one that ends it.
        text: Their text, without special tokens.
        prompt_tokens: Tokens before them.
        finish_reason: ``eos`` (a token that ends it), ``stop`` (a text that does), ``length``, ``time`` or
            ``cancelled``.
        first_token_seconds: From the call until the first token was chosen.
        tokens_per_second: Of the tokens behind the first one; of that one alone, if there are no others.
        engine_calls: Calls of engines, those for the prompt among them; of a batch's request all while it was there.
        peak_bytes: The most memory that the process has had so far.
        logprobs: For every token the logarithm of its probability, by the model's own logits.
        logits: The model's logits ``[tokens, classes]``, float32, where they are asked for.
        source_tokens: Rows of the model's encoder, where it has one; ``prompt_tokens`` are the decoder's.
        guessed_tokens: Tokens that were guessed by speculation.
        right_guesses: Those of them that came true.
        warnings: What the caller should know.
    """

    tokens: list[int]
    text: str
    prompt_tokens: int
    finish_reason: str
    first_token_seconds: float
    tokens_per_second: float
    engine_calls: int
    peak_bytes: int
    logprobs: list[float]
    logits: npt.NDArray[np.float32] | None = None
    source_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All but the logits, for JSON."""
        names = ("tokens", "text", "prompt_tokens", "finish_reason", "first_token_seconds", "tokens_per_second")
        others = (
            "engine_calls",
            "peak_bytes",
            "logprobs",
            "source_tokens",
            "guessed_tokens",
            "right_guesses",
            "warnings",
        )
        return {name: getattr(self, name) for name in (*names, *others)}
