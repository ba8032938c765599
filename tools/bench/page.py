"""Renders the benchmark's figures as docs/results/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.figures import NAMES, PARTS, described, measured, speed_up
from tools.bench.plots import draw
from tools.machine import machine_line
from tools.markdown import table

__all__ = ["render", "write_page"]

INTRODUCTION = """\
# Performance

Written by `make bench` (`python -m tools.bench`); the same figures as data are in `performance/performance.json`.

Of a case, every contender is loaded in a process of its own; then they run one after the other, in turns, with nobody
else computing, and the median of the repeats counts. So ratios within a table mean something, while absolute times are
those of one machine on one day. Inputs are random tokens. Models run without their head, in float32 unless a line says
otherwise; times are from the call to the result, after an unmeasured run of at most 512 tokens. *Peak memory* is the
most that a process had resident during the run, its model included and its loading left out. *Of the peak* sets
floating-point operations against those of 512 x 512 float32 products on as many threads, measured in the same turns.
All contenders of a case are in memory together, with what they keep from run to run; whoever finds too little is ended
by the system, with signal 9.
"""


def write_page(results: Mapping[str, Any], folder: Path) -> None:
    """Writes ``performance.md`` into ``folder``, and its plots into ``folder/performance``."""
    draw(results, folder / "performance")
    (folder / "performance.md").write_text(render(results), encoding="utf-8")


def render(results: Mapping[str, Any]) -> str:
    """The page of the figures ``results``, by case."""
    minutes = sum(case["took_seconds"] for case in results.values()) / 60
    lines = [
        INTRODUCTION,
        f"All cases took {minutes:.0f} minutes.",
        "",
        "![Times of others over ours](performance/speed_up.png)",
        "",
    ]
    lines += ["![Where our time goes](performance/breakdown.png)", ""]
    for name, case in results.items():
        lines += _case(name, case)
    return "\n".join(lines).rstrip() + "\n"


def _case(name: str, case: Mapping[str, Any]) -> list[str]:
    ours = measured(case, case["contenders"][0])
    peak = case["peak_flops_per_second"]
    lines = [f"## {case['title']}", "", f"*{case['question']}* `python -m tools.bench {name}`", ""]
    lines += [machine_line(case["machine"]), ""]
    lines += [
        f"{case['threads']} thread{'s'[: case['threads'] != 1]}, medians of {case['repeats']} runs"
        + (f"; matrix products reach {peak / 1e9:.0f} GFLOP/s" if peak else "")
        + f". It took {case['took_seconds'] / 60:.0f} minutes.",
        "",
    ]
    lines += _times(case)
    lines += _agreement(case)
    if len(ours) > 1:
        lines += [f"![Time by length](performance/{name}_time.png)", ""]
    lines += _ours(case, ours)
    return lines


def _times(case: Mapping[str, Any]) -> list[str]:
    """All contenders at all lengths, ours first."""
    ratios = speed_up(case)
    lengths = sorted({row["length"] for row in case["rows"]})
    rows = (
        _cells(row, ratios.get(row["contender"], {}).get(length), case["peak_flops_per_second"])
        for length in lengths
        for row in case["rows"]
        if row["length"] == length
    )
    headings = ("", "tokens", "time", "range", "tokens/s", "its time / ours", "of the peak", "peak memory")
    return table(headings, rows, left=1)


def _cells(row: Mapping[str, Any], ratio: float | None, peak: float | None) -> Sequence[object]:
    name = described(row)
    if "seconds" not in row:
        return name, f"{row['length']:,}", f"- ({row['reason']})", "", "", "", "", ""
    seconds, flops = row["seconds"], row["flops"]
    return (
        name,
        f"{row['length']:,}",
        _seconds(seconds),
        f"{_seconds(min(row['all_seconds']))} - {_seconds(max(row['all_seconds']))}",
        f"{row['length'] / seconds:,.0f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if flops is None or peak is None else f"{flops / seconds / peak:.0%}",
        f"{row['peak_bytes'] / 1e9:.2f} GB",
    )


def _agreement(case: Mapping[str, Any]) -> list[str]:
    """How far the others' results are from ours, from the runs that were not measured."""
    found = [f"{NAMES[name]} {difference:.1e}" for name, difference in case["differences"].items()]
    if not found:
        return []
    return [f"Largest difference of last hidden states to ours, by their largest magnitude: {', '.join(found)}.", ""]


def _ours(case: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where our time goes, our memory beside the plan's, and how time grows."""
    cells: list[Sequence[object]] = []
    for at, row in enumerate(rows):
        detail = row["detail"]
        parts = detail["breakdown"]
        total = sum(parts.values())
        before = rows[at - 1] if at and row["length"] == 2 * rows[at - 1]["length"] else None
        cells.append(
            (
                f"{row['length']:,}",
                f"{detail['engine_calls']:,}",
                *(f"{parts[part] / total:.1%}" for part in PARTS if part != "head"),
                f"{row['peak_bytes'] / 1e9:.2f} / {detail['planned_peak_bytes'] / 1e9:.2f} GB",
                "" if before is None else f"{row['seconds'] / before['seconds']:.2f}",
            )
        )
    kinds = (PARTS[part] for part in PARTS if part != "head")
    headings = ("tokens", "calls", *kinds, "memory measured / planned", "time / that of half")
    return ["Where the time of our threads goes:", "", *table(headings, cells)] if cells else []


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
