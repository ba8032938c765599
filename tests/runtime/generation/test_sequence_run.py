"""A sequence that tokens are guessed of: wherever it ends, what is kept of it is what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from tests.runtime.generation.decoders import BLOCK, bundle, tokens
from twoheads.runtime.generation.call_reader import CallReader
from twoheads.runtime.generation.generated import Generated

PROMPT, NEW = tokens(BLOCK - 5), 2 * BLOCK


class Knowing:
    """Guesses what will come, but for every fourth token.

    Args:
        seen: The sequence so far.
        whole: All of it.
    """

    asked: ClassVar[list[tuple[int, int]]] = []
    """Of all that guess: how long the sequence was, and how many guesses were asked for."""

    def __init__(self, seen: Sequence[int], whole: Sequence[int]) -> None:
        self.guessed = self.right = 0
        self._length, self._whole = len(seen), [token if at % 4 else 1 for at, token in enumerate(whole)]

    def add(self, _: int) -> None:
        self._length += 1

    def guess(self, most: int) -> list[int]:
        self.asked.append((self._length, most))
        return self._whole[self._length :][: max(0, min(7, most))]

    def learn(self, guessed: int, right: int) -> None:
        self.guessed += guessed
        self.right += right

    def close(self) -> None:
        pass


def _generate(**options: Any) -> Generated:
    made = bundle("llama").generate(PROMPT, max_new_tokens=NEW, steady=True, **options)
    assert isinstance(made, Generated)
    return made


@pytest.fixture
def chosen(monkeypatch) -> list[int]:
    """What comes behind the prompt; from now on it is guessed."""
    made = _generate(ignore_eos=True).tokens
    whole = [*PROMPT, *made]
    monkeypatch.setattr(Knowing, "asked", [])
    monkeypatch.setattr(CallReader, "_guesser", lambda *_: lambda seen: Knowing(seen, whole))
    return made


def test_a_stream_that_is_left_keeps_what_it_told(chosen):
    for count in range(1, NEW):
        with bundle("llama").open_context() as context:
            stream = bundle("llama").stream(PROMPT, context=context, max_new_tokens=NEW, ignore_eos=True, steady=True)
            told = [next(stream).token for _ in range(count)]
            stream.close()
            assert told == chosen[:count]
            assert context.tokens == [*PROMPT, *told]


def test_an_end_is_kept_where_something_else_was_guessed(chosen):
    ends = {token: at for at, token in reversed([*enumerate(chosen)])}
    for token, at in ends.items():
        with bundle("llama").open_context() as context:
            made = _generate(context=context, eos_token_id=token)
            assert (made.tokens, made.finish_reason) == (chosen[: at + 1], "eos")
            assert context.tokens == [*PROMPT, *made.tokens]
    assert len(ends) > 8


def test_a_call_that_fails_keeps_what_was_chosen(chosen):
    for count in range(1, 8):
        told: list[int] = []

        def fails(piece, told=told, count=count):
            told.append(piece.token)
            if len(told) == count:
                raise KeyboardInterrupt

        with bundle("llama").open_context() as context:
            with pytest.raises(KeyboardInterrupt):
                _generate(context=context, streamer=fails, ignore_eos=True)
            assert context.tokens == [*PROMPT, *chosen[:count]]


def test_no_guess_fills_a_block(chosen):
    """One that did and were wrong would have the block computed again."""
    made = _generate(ignore_eos=True)
    assert made.tokens == chosen
    assert 0 < made.right_guesses < made.guessed_tokens
    assert any(most > 7 for _, most in Knowing.asked)
    for length, most in Knowing.asked:
        assert length % BLOCK == 0 or length % BLOCK + most < BLOCK
        assert length + most < len(PROMPT) + NEW
