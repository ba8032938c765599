"""The page of docs/results/theorems.md: a measured row, and how it is shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tools.theorems import Case, measure
from tools.theorems_report import Batch, Machine, Row, render

BATCH = Batch(200, 2500, 26, 10, 1.0, 20.0, 130, 2600, 1e-7)
MACHINE = Machine(2, "a processor", date(2026, 1, 2))


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    measured = measure(Case("causal", "causal", 100, 1, 2), tmp_path_factory.mktemp("theorems") / "b")
    assert measured is not None
    return measured


def test_a_row_is_counted_and_exact(row: Row) -> None:
    assert (row.theorem, row.lowering) == ("Theorem 3.5", "tile")
    assert row.calls == row.formula_calls == 10
    assert (row.paper_calls, row.floor_calls, row.rounds) == (32, 5, 3)
    assert row.error <= 4 * max(row.noise_floor, 2e-7 * row.magnitude)


def test_what_the_compiler_does_not_know_is_left_out(tmp_path: Path) -> None:
    case = Case("none", "causal", 50, 1, 1)
    assert measure(replace(case, options=(("no_such_option", 1),)), tmp_path / "a") is None
    assert measure(replace(case, options=(("lowering", "no such"),)), tmp_path / "b") is None


def test_the_page_shows_calls_beside_the_paper_s_and_refuses_a_miscount(row: Row) -> None:
    page = render(MACHINE, [row, replace(row, paper=None, paper_calls=None)], BATCH)
    assert "| `n + F(n) = 10` | 10 | 32 (2*n + 4*n*(n - 1)/2 = 32) | 3.20 | 5 | 3 |" in page
    assert "| `n + F(n) = 10` | 10 | - | - | 5 | 3 |" in page
    assert "Packing is 20.0 times as fast" in page
    assert "4.1 approximates" not in page
    assert "4.1 approximates" in render(MACHINE, [replace(row, exact=False)], BATCH)
    with pytest.raises(AssertionError, match="11 calls counted, 10 by the formula"):
        render(MACHINE, [replace(row, calls=11)], BATCH)
