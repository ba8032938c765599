"""Workers that compute side by side and add what they have in the order of their pieces."""

from __future__ import annotations

import threading

import pytest

from twoheads.runtime.execution.crew import Crew, Turns


def test_what_is_done_later_waits_for_its_turn() -> None:
    done: list[int] = []
    last = threading.Event()
    with Crew(3) as crew:
        turns = Turns(crew)

        def piece(number: int) -> None:
            if number == 0:
                last.wait(10)  # until the others are there
            if number == 2:
                last.set()
            turns.wait(number)
            done.append(number)
            turns.end()

        crew.run(range(9), lambda: piece)
    assert done == list(range(9))


def test_who_waits_for_one_that_fails_is_told() -> None:
    with Crew(2) as crew:
        turns = Turns(crew)
        there = threading.Event()

        def piece(number: int) -> None:
            if number == 0:
                there.wait(10)
                raise ValueError("the first one")
            there.set()
            turns.wait(number)

        with pytest.raises(ValueError, match="the first one"):
            crew.run(range(2), lambda: piece)
