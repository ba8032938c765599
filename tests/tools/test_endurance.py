"""A small share of the kills, and that faults are seen."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools.endurance.page import render

CASES = "run -o,generate --cache,export"
"""Those that take fractions of a second."""


@pytest.mark.long("tests/end_to_end/test_kills.py", "test_faults_are_told")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are handed over on Linux alone")
def test_a_share_of_the_kills(tmp_path) -> None:
    words = [sys.executable, "-m", "tools.endurance", "--docs", str(tmp_path), "--cases", CASES, "kills", "4"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "kills.json").read_text())["kills"]
    assert {name: sum(row["kills"].values()) for name, row in found.items()} == dict.fromkeys(CASES.split(","), 4)
    assert "12 kills." in (tmp_path / "kills.md").read_text()


def test_faults_are_told() -> None:
    row = {
        "kills": {"SIGKILL": 3},
        "stood": {"new": 3},
        "finished": 2,
        "faults": ["half written"],
        "machine": "2 cores of X",
        "day": "2026-01-01",
    }
    page = render({"kills": {"export": row}})
    assert "| export | 3 | 0 | 0 | 0 | 0 | 3 | 0 | 2 | 1 |" in page
    assert "* export: half written" in page
