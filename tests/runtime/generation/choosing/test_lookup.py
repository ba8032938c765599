"""Guesses by look-up are checked for free before a call is paid for, and cost next to nothing where they are wrong."""

import numpy as np
import pytest

from twoheads.runtime.generation.choosing.lookup import PAYS, PromptLookup, needed_guesses

MOST = 7


def follow(sequence: list[int], *, known: int = 1, needed: float = 1.5) -> tuple[float, list[int]]:
    """What ``sequence`` costs behind ``known`` tokens, in steps, and where calls for guesses were made.

    As a run of the model would, it takes all guesses that come true, and the token behind them.
    """
    lookup, at, cost, paid = PromptLookup(sequence[:known], MOST, needed=needed), known, 0.0, list[int]()
    while at < len(sequence):
        guesses = lookup.guess(MOST)
        right = 0
        while right < len(guesses) and at + right < len(sequence) and sequence[at + right] == guesses[right]:
            right += 1
        cost += 1 + needed * bool(guesses)
        if guesses:
            paid.append(at)
        for token in sequence[at : at + right + 1]:
            lookup.add(token)
        at += right + 1
        if guesses:
            lookup.learn(len(guesses), right)
    return cost, paid


def unlike(count: int, seed: int = 0) -> list[int]:
    """Tokens of which no two follow each other twice."""
    return [int(token) for token in np.random.default_rng(seed).permutation(1 << 20)[:count] + 1000]


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([7, 1, 2, 3, 1, 2, 3, 1], [2, 3, 1, 2, 3, 1, 2]),
        ([4, 4, 4, 4], [4] * 7),
        ([1, 2, 3, 4, 5, 6, 1, 2], [3, 4, 5, 6, 1, 2, 3]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2], [3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_guesses_are_as_many_where_a_sequence_runs_in_circles(sequence, expected):
    copied = unlike(20)
    lookup = PromptLookup([*copied, *copied, *sequence], MOST)
    assert lookup.guess(MOST) == expected
    assert lookup.guess(4) == expected[:4]


def test_a_beginning_that_repeats_itself_pays_at_once():
    copied = unlike(20)
    assert PromptLookup([*copied, *copied[:10]], MOST).guess(MOST) == copied[10:17]
    assert PromptLookup([*copied, 1, 2, 3, 1, 2], MOST).guess(MOST) == []  # one guess, of which nothing is known


def test_what_has_not_come_true_is_not_computed():
    """Every pair stands there already, and something else follows each time."""
    pairs = [token for other in unlike(200) for token in (1, 2, other)]
    cost, paid = follow(pairs)
    assert paid == []
    assert cost == len(pairs) - 1


def test_copies_are_computed_once_a_shadow_has_come_true():
    copied = unlike(100)
    cost, paid = follow([*copied, *copied, *copied])
    assert 102 < paid[0] <= 102 + MOST  # two tokens are looked up, then the shadow is compared
    assert cost < 100 + 200 / 2.5


def test_guesses_stop_where_a_copy_ends_and_come_again():
    copied, pairs = unlike(60), [token for other in unlike(100, 1) for token in (1, 2, other)]
    sequence = [*copied, *copied, *pairs, *copied, *copied]
    cost, paid = follow(sequence)
    wrong = [at for at in paid if 125 < at < 120 + len(pairs)]
    assert len(wrong) <= 3
    assert any(at > 120 + len(pairs) for at in paid)
    assert cost < len(sequence) - 90


@pytest.mark.parametrize("needed", [1.5, 2.75, 3.0])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 12, 18])
def test_a_template_that_ends_each_time_costs_little(length, needed):
    """The same words of some length, then others: whatever the length, there is little to lose."""
    template = list(range(length))
    for count in (1, 3):
        gaps = np.array(unlike(40 * count)).reshape(40, count)
        sequence = [token for gap in gaps for token in (*template, *map(int, gap))]
        cost, _ = follow(sequence, needed=needed)
        assert cost < 1.04 * len(sequence)


def test_a_call_for_fewer_guesses_than_it_needs_is_not_made():
    copied = unlike(20)
    lookup = PromptLookup([*copied, *copied[:10]], MOST, needed=2.25)
    for left in (-1, 0, 1, 2):
        assert lookup.guess(left) == []
    assert lookup.guess(3) == copied[10:13]


def test_what_is_computed_is_counted_once():
    """Though a shadow, of a call that would have been too short, began with it."""
    lookup = PromptLookup([*unlike(30), *unlike(30)], MOST, needed=1.5)
    assert lookup.guess(1) == []
    assert lookup.guess(MOST) != []
    for token in (1, 2, 3):
        lookup.add(token)
    lookup.learn(MOST, 0)
    for other in (4, 5, 6):
        for token in (1, 2):
            lookup.add(token)
        assert lookup.guess(MOST) != []  # of 8, three calls leave 3.5
        lookup.learn(MOST, 0)
        lookup.add(other)


def test_a_shadow_is_not_counted_as_guessed():
    copied = unlike(30)
    lookup = PromptLookup(copied, MOST)
    for token in copied[:20]:
        lookup.guess(MOST)
        lookup.add(token)
    assert (lookup.guessed, lookup.right) == (0, 0)
    assert lookup.guess(MOST) == copied[20:27]
    lookup.learn(MOST, 2)
    assert (lookup.guessed, lookup.right) == (MOST, 2)


def test_what_a_call_needs_goes_by_the_form_of_steps():
    needed = [
        needed_guesses(in_place=in_place, whole_numbers=whole, quantised=quantised)
        for in_place, whole, quantised in ((True, False, False), (True, True, True), (True, False, True))
    ]
    elsewhere = needed_guesses(in_place=False, whole_numbers=True, quantised=True)
    assert needed[0] == needed[1] < needed[2] < elsewhere
    assert MOST - elsewhere >= PAYS  # a shadow that comes true is enough
