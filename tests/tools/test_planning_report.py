"""The page of the plan is made of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.planning_report import draw, render

DOCS = Path(__file__).parent.parent.parent / "docs" / "results"


def _figures() -> dict[str, Any]:
    return json.loads((DOCS / "planning.json").read_text(encoding="utf-8"))


def test_the_page_is_rendered_from_the_figures() -> None:
    assert render(_figures()) == (DOCS / "planning.md").read_text(encoding="utf-8")


def test_the_farthest_off_is_told() -> None:
    figures = _figures()
    run = figures["cases"][0]["runs"][0]
    run["predicted_seconds"], run["predicted_peak_bytes"] = 3 * run["seconds"], run["peak_bytes"] / 4
    assert "The farthest off: 200% in time, 75% in memory." in render(figures)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(_figures(), tmp_path / "planning.png")
    assert (tmp_path / "planning.png").stat().st_size > 10_000
