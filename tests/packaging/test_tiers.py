"""The second tier of tests hides nothing: what it leaves out of ``make test``, something there shows as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiers import problems, with_long

ROOT = Path(__file__).parents[2]
HERE = "tests/packaging/test_tiers.py"
KILLS = "tests/end_to_end/test_kills.py"


class _Collected:
    """What the check asks of a collected test; ``named`` is what its mark names, of one that has the mark."""

    def __init__(self, test: str, named: tuple[str, ...] | None = None) -> None:
        self.nodeid, self.named = f"{HERE}::{test}", named

    def get_closest_marker(self, name: str) -> Any:
        assert name == "long"
        return None if self.named is None else pytest.mark.long(*self.named).mark


CASES = (_Collected("test_cases[1]"), _Collected("test_cases[2]", ()), _Collected("test_rare[1]", ("test_cases",)))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (("test_cases",), []),
        (("test_cases", f"{KILLS}::test_run"), []),
        ((KILLS,), []),
        ((), [f"all of {HERE}::test_alone is marked long"]),
        (("test_rare",), [f"all of {HERE}::test_rare is marked long"]),
        (("test_gone", "test_cases"), [f"there is no {HERE}::test_gone"]),
        ((f"{KILLS}::test_gone",), [f"there is no {KILLS}::test_gone"]),
        (("tests/test_gone.py",), ["there is no tests/test_gone.py"]),
    ],
)
def test_what_shows_the_same_faults_is_in_the_first_tier(named: tuple[str, ...], told: list[str]) -> None:
    items: Any = (*CASES, _Collected("test_alone", named))
    assert problems(items, ROOT) == [f"{HERE}::test_alone: {problem}" for problem in told]


def test_cases_that_are_not_first_are_long() -> None:
    made = with_long([("a", 1), ("b", 2), "c"], [("a", 1)])
    assert made[0] == ("a", 1)
    assert [(case.values, [mark.name for mark in case.marks]) for case in made[1:]] == [
        (("b", 2), ["long"]),
        (("c",), ["long"]),
    ]
    with pytest.raises(ValueError, match="'d'"):
        with_long(["a"], ["d"])
