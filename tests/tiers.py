"""The two tiers of tests: what ``make test`` runs, and what it leaves to ``make test-long``.

A test of the second tier is marked ``long``, and a test of the first shows the same faults. Of a test whose other cases
stay in the first tier these do, and nothing is named; any others are::

    @pytest.mark.long("tests/end_to_end/test_kills.py::test_run")

A name without a file is a test of the same file. Tests of random cases are in both tiers: ``make test-long`` repeats
those marked ``repeated`` with more of them. Whoever collects tests checks that what is named is there, and that
not all of it is marked ``long`` itself.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["cases", "problems", "with_long"]

MARKER = "long"

SECOND = bool(os.environ.get("TWOHEADS_SECOND_TIER"))
"""Whether the second tier runs."""


def cases(first: int, second: int) -> int:
    """How many random cases a test makes: in the first tier, and in the second, where it is marked ``repeated``."""
    return second if SECOND else first


def with_long(values: Iterable[Any], first: Iterable[Any], *shown_by: str) -> list[Any]:
    """The cases of a test, those that are not among ``first`` marked ``long``.

    Raises:
        ValueError: One of ``first`` is not among the cases.
    """
    cases, kept = list(values), list(first)
    if missing := [case for case in kept if case not in cases]:
        raise ValueError(f"{missing} are no cases")
    mark = pytest.mark.long(*shown_by)
    return [case if case in kept else _marked(case, mark) for case in cases]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)


def problems(items: Sequence[pytest.Item], root: Path) -> list[str]:
    """What is wrong with the marks of tests, a line each: what should show the same faults is not in the first tier.

    Of files that were not collected, only the text is looked at.
    """
    first: dict[str, bool] = defaultdict(bool)
    named: dict[str, str] = {}
    for item in items:
        test = item.nodeid.split("[")[0]
        file, mark = test.split("::")[0], item.get_closest_marker(MARKER)
        for name in (test, file):
            first[name] |= mark is None
        if mark is not None:
            named |= {name if ".py" in name else f"{file}::{name}": item.nodeid for name in mark.args or (test,)}
    return [f"{item}: {problem}" for name, item in named.items() if (problem := _problem(name, first, root))]


def _problem(name: str, first: Mapping[str, bool], root: Path) -> str | None:
    if name in first:
        return None if first[name] else f"all of {name} is marked {MARKER}"
    file, _, test = name.partition("::")
    path = root / file
    if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
        return f"there is no {name}"
    return None
