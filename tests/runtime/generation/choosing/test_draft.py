"""Guesses of a smaller model are made while they gain more than they cost, its own steps among that."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from twoheads.runtime.generation.choosing.draft import FEWEST, PAUSE, DraftGuesses

MOST, CLASSES = 7, 50


class Smaller:
    """A model that finds ``follows(tokens)`` most likely, and counts what it computes."""

    def __init__(self, follows: Callable[[list[int]], int]) -> None:
        self.tokens: list[int] = []
        self.single = self.several = self.read = 0
        self.closed = False
        self._follows = follows

    def _logits(self) -> npt.NDArray[np.float32]:
        logits = np.zeros(CLASSES, np.float32)
        logits[self._follows(self.tokens)] = 1
        return logits

    def append(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self.tokens.extend(tokens)
        self.read += len(tokens)
        return self._logits()

    def step(self, token: int) -> npt.NDArray[np.float32]:
        self.tokens.append(token)
        self.single += 1
        return self._logits()

    def steps(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self.tokens.extend(tokens)
        self.several += 1
        return self._logits()[None]

    def rollback(self, length: int) -> None:
        assert length < len(self.tokens)
        del self.tokens[length:]

    def close(self) -> None:
        self.closed = True


def counted(tokens: list[int]) -> int:
    """What really comes: each token is one more than the last."""
    return (tokens[-1] + 1) % CLASSES


def wrong(tokens: list[int]) -> int:
    return (tokens[-1] + 2) % CLASSES


def follow(draft: DraftGuesses, count: int) -> list[tuple[int, int]]:
    """``count`` tokens behind one: where calls for guesses were made, and for how many."""
    at, token, calls = 1, 0, list[tuple[int, int]]()
    while at <= count:
        guesses = draft.guess(MOST)
        right = 0
        while right < len(guesses) and guesses[right] == (token + 1 + right) % CLASSES:
            right += 1
        if guesses:
            calls.append((at, len(guesses)))
        for _ in range(right + 1):
            token = (token + 1) % CLASSES
            draft.add(token)
        at += right + 1
        if guesses:
            draft.learn(len(guesses), right)
    return calls


def test_more_is_guessed_where_guesses_come_true():
    model = Smaller(counted)
    draft = DraftGuesses(model, [0], MOST, needed=1.5, share=0.2)
    calls = follow(draft, 100)
    assert [count for _, count in calls[:4]] == [FEWEST, 6, MOST, MOST]
    assert [at for at, _ in calls[:3]] == [1, 6, 13]  # one behind the other
    assert draft.right == draft.guessed > 80
    assert model.tokens == [*(at % CLASSES for at in range(len(model.tokens)))]
    assert model.several == 0  # two single steps take less
    draft.close()
    assert model.closed


def test_pauses_behind_wrong_guesses_double():
    calls = follow(DraftGuesses(Smaller(wrong), [0], MOST, needed=1.5, share=0.2), 1000)
    starts = [at for at, _ in calls]
    assert np.diff(starts).tolist() == [1 + PAUSE, 1 + 2 * PAUSE, 1 + 4 * PAUSE, 1 + 8 * PAUSE]
    assert {count for _, count in calls} == {FEWEST}


def test_pauses_are_short_again_once_guesses_came_true():
    def in_the_middle(tokens: list[int]) -> int:
        return counted(tokens) if 60 < len(tokens) < 100 else wrong(tokens)

    starts = [at for at, _ in follow(DraftGuesses(Smaller(in_the_middle), [0], MOST, needed=1.5, share=0.2), 400)]
    paused = [int(between) for between in np.diff(starts) if between >= PAUSE]
    assert paused == [1 + PAUSE, 1 + PAUSE, 1 + 2 * PAUSE]


def test_what_the_smaller_model_takes_counts():
    """All guesses come true: of a model nearly as large as the other they gain nothing all the same."""
    assert len(follow(DraftGuesses(Smaller(counted), [0], MOST, needed=1.5, share=0.2), 200)) > 20
    calls = follow(DraftGuesses(Smaller(counted), [0], MOST, needed=1.5, share=0.75), 400)
    assert 1 < len(calls) < 20
    as_large = Smaller(counted)
    assert follow(DraftGuesses(as_large, [0], MOST, needed=1.5, share=1.0), 200) == []
    assert as_large.tokens == []  # nor does it read anything


def test_what_is_read_behind_a_pause_does_not_count():
    """It is spent when guesses come true again."""

    def late(tokens: list[int]) -> int:
        return wrong(tokens) if len(tokens) == 1 else counted(tokens)

    model = Smaller(late)
    starts = [at for at, _ in follow(DraftGuesses(model, [0], MOST, needed=1.5, share=0.4), 3 * PAUSE)]
    assert starts[:3] == [1, 2 + PAUSE, 7 + PAUSE]
    assert model.read == 1 + PAUSE


def test_calls_are_counted_one_by_one():
    """Some guesses of each are wrong, so that the smaller model goes on with one token."""

    def sometimes(tokens: list[int]) -> int:
        return wrong(tokens) if tokens[-1] % 4 == 3 else counted(tokens)

    calls = follow(DraftGuesses(Smaller(sometimes), [0], MOST, needed=1.5, share=0.2), 400)
    assert len(calls) > 95


def test_what_could_not_pay_is_not_guessed():
    model = Smaller(counted)
    draft = DraftGuesses(model, [0, 1, 2], MOST, needed=1.5, share=0.2)
    for most in (-1, 0, 1):
        assert draft.guess(most) == []
    assert model.tokens == []
    assert draft.guess(2) == [3, 4]
    assert DraftGuesses(model, [0, 1, 2], MOST, needed=1.5, share=0.3).guess(2) == []


def test_a_smaller_model_that_takes_no_more_tokens_guesses_nothing():
    model = Smaller(counted)
    draft = DraftGuesses(model, list(range(10)), MOST, needed=0.5, share=0.2, longest=12)
    assert draft.guess(MOST) == [10, 11]
    for token in (10, 11):
        draft.add(token)
    draft.learn(2, 2)
    assert draft.guess(MOST) == []
    assert len(model.tokens) <= 12
