"""Runs the zoo and writes what it covers: ``python -m tools.zoo`` (ten minutes on two cores).

Writes ``docs/results/models.md`` and ``export/twoheads/export/coverage.json``, which ``twoheads models`` prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from tools.zoo.entry import Entry
from tools.zoo.measure import measure
from tools.zoo.onnx_files import ONNX_FILES, REFUSED_FILES
from tools.zoo.report import render, versions
from tools.zoo.torch_families import BACKBONES
from tools.zoo.torch_heads import REFUSED, TASKS

ROOT = Path(__file__).parents[2]
COVERAGE = ROOT / "export" / "twoheads" / "export" / "coverage.json"
DOCUMENT = ROOT / "docs" / "results" / "models.md"
ZOO = (*BACKBONES, *TASKS, *ONNX_FILES, *REFUSED, *REFUSED_FILES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the zoo, or the part of it that ``--only`` names; returns 1 if a model did not do what is expected of it."""
    parser = argparse.ArgumentParser(prog="python -m tools.zoo", description=__doc__)
    parser.add_argument("--only", default="", help="run what has this in its name and write nothing")
    only = str(parser.parse_args(arguments).only).lower()
    entries = [
        entry for entry in (*BACKBONES, *TASKS, *ONNX_FILES, *REFUSED, *REFUSED_FILES) if only in entry.name.lower()
    ]
    rows = [_row(entry) for entry in track(entries, "zoo")]
    wrong = [problem for entry, row in zip(entries, rows, strict=True) if (problem := _problem(entry, row))]
    for problem in wrong:
        sys.stderr.write(problem + "\n")
    if not only and not wrong:
        data = {"versions": versions(), "rows": rows}
        COVERAGE.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        DOCUMENT.write_text(render(data), encoding="utf-8")
    return 1 if wrong else 0


def _row(entry: Entry) -> dict[str, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return measure(entry, Path(folder))


def _problem(entry: Entry, row: dict[str, Any]) -> str | None:
    """What is wrong with a row, in a line; ``None`` if nothing is."""
    if entry.refusal is None and row["refusal"] is not None:
        return f"{entry.name}: refused: {row['refusal']}"
    if entry.refusal is not None and entry.refusal not in (row["refusal"] or ""):
        return f"{entry.name}: expected a refusal with {entry.refusal!r}, got {row['refusal'] or 'a bundle'}"
    if row["refusal"] is None and not row["passed"]:
        return f"{entry.name}: error {row['error']:.2e}, noise floor {row['noise_floor']:.2e}"
    return None


if __name__ == "__main__":
    sys.exit(main())
