"""Workers that compute side by side and have what they made taken in the order of their pieces."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.in_order import InOrder


def test_what_is_done_later_is_taken_later() -> None:
    taken: list[tuple[Any, float]] = []
    last = threading.Event()
    with Crew(3) as crew:
        ordered = InOrder(crew, lambda what, rows: taken.append((what, float(rows[0]))), 8)

        def piece(number: int) -> None:
            if number == 0:
                assert last.wait(10), "the others wait for the first one"
            rows = np.full(3, number, np.float32)
            ordered.give(number, f"piece {number}", rows)
            rows[...] = -1  # they are the worker's again
            if number == 8:
                last.set()

        crew.run(range(9), lambda: piece)
    assert taken == [(f"piece {number}", number) for number in range(9)]


def test_no_more_than_so_many_wait() -> None:
    taken: list[int] = []
    ahead = threading.Event()
    with Crew(2) as crew:
        ordered = InOrder(crew, lambda what, _: taken.append(what), 2)

        def piece(number: int) -> None:
            if number == 0:
                assert not ahead.wait(0.3), "the third one waits for the first"
            ordered.give(number, number, np.zeros(1))
            if number == 3:
                ahead.set()

        crew.run(range(6), lambda: piece)
    assert taken == list(range(6))


def test_who_waits_for_one_that_fails_is_told() -> None:
    with Crew(2) as crew:
        ordered = InOrder(crew, lambda what, rows: None, 0)
        there = threading.Event()

        def piece(number: int) -> None:
            if number == 0:
                there.wait(10)
                raise ValueError("the first one")
            there.set()
            ordered.give(number, None, np.zeros(1))

        with pytest.raises(ValueError, match="the first one"):
            crew.run(range(2), lambda: piece)
