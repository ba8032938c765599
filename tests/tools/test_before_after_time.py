"""The table of times, and its place on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.before_after_time import BEGIN, COLUMNS, END, PAGE, commands, row, written
from tools.measured_process import Measured


def _took(seconds: float, cpu_seconds: float, mebibytes: int) -> Measured:
    return Measured(0, seconds, cpu_seconds, mebibytes << 20, "", "")


def test_ratios_are_of_pairs_and_times_are_medians() -> None:
    pairs = [
        (_took(2, 1, 10), _took(1, 0.5, 11)),
        (_took(4, 2, 30), _took(4, 2, 9)),
        (_took(8, 4, 20), _took(4, 3, 8)),
    ]
    found = row("a", pairs)
    assert found == ["a", "2.00", "2.00", "0.75", "4.00", "4.00", "0.50", "30", "11"]
    assert len(found) == len(COLUMNS)


def test_the_page_has_a_place_for_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    once = written(page, "| \\1 | new |")
    assert written(once, "| other |").count("| other |") == 1
    assert once.split(BEGIN)[0] == page.split(BEGIN)[0]
    assert once.split(END)[1] == page.split(END)[1]
    with pytest.raises(ValueError, match="has no lines between"):
        written("# nothing", "| new |")


def test_both_states_do_the_same_to_bundles_of_their_own(tmp_path: Path) -> None:
    made, run = commands(tmp_path, {name: tmp_path / name for name in ("minilm", "smollm2")})
    for command in (*made, *run):
        sides = [[str(word) for word in words] for words in command.words]
        before, today = ([word.replace(".before", "").replace(".today", "") for word in words] for words in sides)
        assert [word for word in today if word != "--no-generation"] == before
        assert command.words[0] != command.words[1]
