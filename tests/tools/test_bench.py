"""The benchmark's processes and its page, on contenders that compute nothing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tools.bench.cases import CASES, Case, quick
from tools.bench.contenders import CONTENDERS, Setting
from tools.bench.figures import NAMES, speed_up
from tools.bench.measure import measure_case
from tools.bench.page import render, write_page
from tools.bench.plots import COLOURS
from tools.bench.process import ContenderError, ContenderProcess

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
SETTING = Setting(threads=2, vocabulary=10, longest=200, block_size=16, paths={})

start = partial(ContenderProcess, module="tests.tools.bench_contender")


def test_a_contender_answers_commands_and_its_noise_does_not_disturb(tmp_path):
    with start("steady", SETTING) as process:
        assert process.wait(30) == {"error": None}
        saved = tmp_path / "result.npy"
        assert process.ask({"do": "result", "length": 5, "save": str(saved)}, 30)["saved"]
        assert saved.exists()
        answer = process.ask({"do": "run", "length": 50}, 30)
        assert (answer["seconds"], answer["detail"]["omp"]) == (0.05, "2")
        assert answer["peak_bytes"] > 1e7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "MemoryError: no room for$"),
        ("dies", "its process ended with 3: last words"),
        ("sleeps", "took longer than 0 s"),
    ],
)
def test_a_run_that_fails_says_why(name, message):
    with start(name, SETTING) as process:
        process.wait(30)
        with pytest.raises(ContenderError, match=message):
            process.ask({"do": "run", "length": 200}, 30 if name != "sleeps" else 0.2)


def test_everybody_takes_turns_and_who_fails_is_a_row_with_the_reason():
    names = ("ours", "off", "missing", "fails")
    case = Case("c", "Title", "Question?", "none", names, (50, 200), (50,), repeats=2)
    lines: list[str] = []
    found = measure_case(case, {}, 1, lines.append, start)
    rows = {(row["contender"], row["length"]): row for row in found["rows"]}
    assert list(rows) == [(name, length) for length in (50, 200) for name in names]
    assert rows["ours", 200]["seconds"] == 0.2
    assert rows["ours", 200]["all_seconds"] == [0.2, 0.2]
    assert rows["ours", 200]["flops"] == 200
    assert rows["missing", 50]["reason"] == "not installed (No module named 'nonesuch')"
    assert rows["fails", 50]["seconds"] == 0.5
    assert rows["fails", 200]["reason"] == "MemoryError: no room for"
    assert found["differences"] == {"off": pytest.approx(0.1)}
    assert found["peak_flops_per_second"] == 1e9
    assert speed_up(found) == {"off": {50: 1.0, 200: 1.0}, "missing": {}, "fails": {50: 10.0}}


def test_the_page_of_fixed_figures():
    figures = json.loads((GOLDEN / "performance.json").read_text(encoding="utf-8"))
    assert render(figures) == (GOLDEN / "performance.md").read_text(encoding="utf-8")


def test_the_page_and_every_plot_that_it_shows_are_written(tmp_path):
    figures = json.loads((GOLDEN / "performance.json").read_text(encoding="utf-8"))
    (tmp_path / "performance").mkdir()
    write_page(figures, tmp_path)
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    plots = {file.name for file in (tmp_path / "performance").iterdir()}
    shown = {line.split("(performance/")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert shown == plots
    assert len(plots) == 3


def test_the_page_in_docs_is_rendered_from_its_figures():
    file = ROOT / "docs" / "results" / "performance" / "performance.json"
    assert render(json.loads(file.read_text(encoding="utf-8"))) == (
        ROOT / "docs" / "results" / "performance.md"
    ).read_text(encoding="utf-8")


def test_every_contender_of_a_case_exists_and_has_a_name_and_a_colour():
    for case in CASES.values():
        assert case.contenders[0].startswith("ours")
        assert set(case.contenders) <= CONTENDERS.keys() & NAMES.keys() & COLOURS.keys()
        assert list(case.lengths) == sorted(case.lengths)
        assert max(quick(case).lengths) <= 4096
