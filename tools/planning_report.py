"""The page docs/results/planning.md and its picture, from the figures of ``python -m tools.planning``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tools.machine import machine_line
from tools.markdown import table
from twoheads.export.cli.shared.console import seconds_text, size_text

__all__ = ["draw", "render"]

INTRODUCTION = """# What a plan predicts, and what came of it

`twoheads profile` measures one warm call of every engine file of a bundle, alone and with as many callers as a run has
threads. `twoheads plan --device` adds these up over the schedule: a row of attention is its calls by variant, a stage
the makespan of its blocks in the order in which workers take them. No run was used to fit anything.

{machine} Written by `python -m tools.planning`; {repeats}, each in a process of its own, with `--output last`.
Time is that of the run without opening engines; memory is the peak of the whole process.
"""

WORKERS = """
## On local workers

The same on Ray workers of one thread each that share the machine (`twoheads run --cluster local:2`). The plan takes the
calls of two workers to be as slow as those of two threads, copies in memory for the network, and {milliseconds:.1f} ms
to start a stage: what a stage of a run of a single block on one worker took beyond its calls. Moved is what workers
read of each other's blocks and what they copy so that no loss is final.
"""

SCALING = """
## On up to 1024 machines

{model}, {length:,} tokens, last logits, on machines like this one with {threads} threads each, 10 Gbit/s and 1 ms to
start a stage (assumptions, `twoheads profile --network-gbit --round-ms`). Calls, bytes read and memory are those of the
worker with most to do; efficiency is the share of the workers' time in which they compute. The table took
{seconds:.1f} s to compute, the start of Python included.

![Time, efficiency and bytes by workers](planning.png)
"""

BUSY = """
**The machine had other work to do** (a load of {load:.0f} before the first run), so these times are not comparable:
what was measured in one minute says little about the next. Memory, calls and bytes do not depend on it.
"""
BUSY_LOAD = 1.0
"""Processes that wait or run before the first of ours."""

COMPARED = ("predicted", "measured", "off by", "planned memory", "measured", "off by")


def render(results: dict[str, Any]) -> str:
    """The page in Markdown."""
    cases: list[dict[str, Any]] = results["cases"]
    runs = [run for case in cases for run in case["runs"]]
    text = INTRODUCTION.format(machine=machine_line(results["machine"]), repeats=_runs_text(runs[0]["repeats"]))
    if results["load"] > BUSY_LOAD:
        text += BUSY.format(load=results["load"])
    rows = [
        (case["model"], case["block_size"], f"{run['length']:,}", run["threads"], *_compared(run))
        for case in cases
        for run in case["runs"]
    ]
    text += _table(("model", "block", "tokens", "threads", *COMPARED), rows)
    text += f"The farthest off: {_worst(runs, 'seconds'):.0%} in time, {_worst(runs, 'peak_bytes'):.0%} in memory.\n"
    text += _workers(cases)
    if results["scaling"] is not None:
        text += _scaling(results["scaling"])
    return text


def _runs_text(repeats: int) -> str:
    return "one run of each kind" if repeats == 1 else f"medians of {repeats} runs of each kind"


def _compared(run: dict[str, Any]) -> tuple[str, ...]:
    cells: list[str] = []
    for name, unit in (("seconds", _seconds), ("peak_bytes", _gigabytes)):
        predicted, measured = run[f"predicted_{name}"], run[name]
        cells += [unit(predicted), unit(measured), f"{predicted / measured - 1:+.0%}"]
    return tuple(cells)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _worst(runs: Iterable[dict[str, Any]], name: str) -> float:
    return max(abs(float(run[f"predicted_{name}"]) / float(run[name]) - 1) for run in runs)


def _workers(cases: Sequence[dict[str, Any]]) -> str:
    runs = [(case, run) for case in cases for run in case["workers"]]
    if not runs:
        return ""
    rows = [
        (
            case["model"],
            f"{run['length']:,}",
            str(run["workers"]),
            *_compared(run),
            _gigabytes(run["predicted_moved_bytes"]),
            _gigabytes(run["moved_bytes"]),
        )
        for case, run in runs
    ]
    columns = ("model", "tokens", "workers", *COMPARED, "planned to move", "moved")
    return WORKERS.format(milliseconds=runs[0][1]["round_seconds"] * 1e3) + _table(columns, rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n" + "\n".join(table(columns, rows, left=1)) + "\n"


def _scaling(plan: dict[str, Any]) -> str:
    head = SCALING.format(
        model=plan["model"], length=plan["length"], threads=plan["workers"][0]["threads"], seconds=plan["seconds"]
    )
    rows = [
        (
            entry["attention"],
            str(entry["workers"]),
            f"{entry['calls']:,}",
            size_text(entry["read_bytes"]),
            size_text(entry["memory_bytes"]),
            seconds_text(entry["seconds"]),
            f"{entry['speed_up']:.3g}",
            f"{entry['efficiency']:.0%}",
        )
        for entry in plan["workers"]
    ]
    return head + _table(("attention", "workers", "calls", "read", "memory", "time", "speed-up", "efficiency"), rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Predicted against measured times, and the scaling by workers."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    against, time, share = figure.subplots(1, 3)
    for case in results["cases"]:
        points = [(run["seconds"], run["predicted_seconds"]) for run in case["runs"]]
        against.scatter(*zip(*points, strict=True), label=f"{case['model']}, blocks of {case['block_size']}", s=24)
    ends = [min(point) for point in _all_points(results)], [max(point) for point in _all_points(results)]
    low, high = min(ends[0]) * 0.8, max(ends[1]) * 1.25
    against.plot((low, high), (low, high), color="grey", linewidth=1)
    against.fill_between((low, high), (low * 0.8, high * 0.8), (low * 1.2, high * 1.2), color="grey", alpha=0.15)
    against.set(xscale="log", yscale="log", xlabel="measured, seconds", ylabel="predicted, seconds")
    against.set_title("one machine, 1 and 2 threads (grey: within 20 %)", fontsize=10)
    against.legend(frameon=False, fontsize=8)
    entries: list[dict[str, Any]] = results["scaling"]["workers"]
    for attention in dict.fromkeys(entry["attention"] for entry in entries):
        mine = [entry for entry in entries if entry["attention"] == attention]
        workers = [entry["workers"] for entry in mine]
        time.plot(workers, [entry["seconds"] for entry in mine], marker="o", markersize=4, label=attention)
        share.plot(workers, [entry["efficiency"] for entry in mine], marker="o", markersize=4)
    for axes, title in ((time, f"seconds, {results['scaling']['length']:,} tokens"), (share, "efficiency")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda number, _at: f"{number:g}")
        axes.set_xlabel("workers")
        axes.set_title(title, fontsize=10)
        axes.grid(visible=True, alpha=0.3)
    time.set_yscale("log")
    time.legend(frameon=False, fontsize=8)
    share.set_ylim(0, 1.05)
    figure.savefig(path, dpi=110)


def _all_points(results: dict[str, Any]) -> list[tuple[float, float]]:
    return [(run["seconds"], run["predicted_seconds"]) for case in results["cases"] for run in case["runs"]]
