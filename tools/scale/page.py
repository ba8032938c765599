"""Renders docs/results/scale.md from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["render"]

INTRODUCTION = """# Long inputs on a small machine

Random weights, 4 heads of 64, width 256, float32. Every figure is one process of `twoheads run` with
`--memory-limit` and `--spill DIR`, which keeps the values in files and writes checkpoints; its output is streamed
into a `.npz`. Processor seconds are those of all threads together: other work on the machine changes them less than
the seconds on the clock. Ratios are to the row above. Engine calls are counted where they are made, and equal the
formula; a call that had to be repeated is counted apart, and is part of the first number.
"""

WINDOWED = """## A window: linear

4 layers, `causal & window(512, 0)`, blocks of {block_size}. `python -m tools.scale windowed LENGTH`; a row is
linear where the ratio of its times is that of its tokens.
"""

FULL = """## Full causal attention of one layer: quadratic

Blocks of {block_size}: `B = N / {block_size}` query blocks call `B (B + 1) / 2` tiles. `python -m tools.scale full
LENGTH`.
"""

KILLS = """## Killed at random moments

`python -m tools.scale kills COUNT`: SIGKILL at a random moment of the run, and SIGKILL before or after a random
operation of a checkpoint on files (flush, replace, remove), with checkpoints every half second. After each kill
`twoheads resume` continues, until a process gets through. An output is there only when a run has finished. Identical:
the same bits as those of an undisturbed run.
"""

DISK = """## A full disk

`python -m tools.scale disk` (as root): a disk of its own (tmpfs) becomes full at the moment named; when there is
room again, `twoheads resume` continues.
"""


def render(results: Mapping[str, Any]) -> str:
    """The page of all ``results`` there are."""
    parts = [INTRODUCTION]
    for kind, text in (("windowed", WINDOWED), ("full", FULL)):
        rows = {int(length): row for length, row in results.get(kind, {}).items()}
        if rows:
            parts += [text.format_map(next(iter(rows.values()))), _machines(rows), _lengths(rows, kind)]
    if "kills" in results:
        parts += [KILLS, _kills(results["kills"].values())]
    if "disk" in results:
        parts += [DISK, *map(_moment, results["disk"].values())]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _machines(rows: Mapping[int, Any]) -> str:
    return "On " + "; ".join(dict.fromkeys(f"{row['machine']}, {row['day']}" for row in rows.values())) + ".\n"


def _lengths(rows: Mapping[int, Any], kind: str) -> str:
    lines = [
        "| tokens | seconds | ratio | processor seconds | ratio | peak memory, MB | limit | spilled, MB | output, MB | "
        "engine calls | by formula | repeated |" + (" attention calls | B (B + 1) / 2 |" if kind == "full" else ""),
        "|--:" * (14 if kind == "full" else 12) + "|",
    ]
    before: Any = None
    for length, row in sorted(rows.items()):
        cells = [f"{length:,}"]
        for name in ("seconds", "cpu_seconds"):
            ratio = "" if before is None else f"{row[name] / before[1][name]:.2f}"
            cells += [
                f"{row[name]:,.1f}",
                ratio + (f" of {length / before[0]:.0f}" if before and name == "seconds" else ""),
            ]
        cells += [f"{row['peak_bytes'] / 1e6:,.0f}", row["limit"]]
        cells += [f"{row[name] / 1e6:,.0f}" for name in ("spilled_bytes", "output_bytes")]
        cells += [f"{row[name]:,}" for name in ("engine_calls", "formula_calls", "repeated_calls")]
        if kind == "full":
            blocks = -(-length // row["block_size"])
            cells += [f"{row['attention_calls']:,}", f"{blocks * (blocks + 1) // 2:,}"]
        lines.append(f"| {' | '.join(cells)} |")
        before = (length, row)
    return "\n".join(lines) + "\n"


def _kills(cases: Iterable[Any]) -> str:
    lines = [
        "| run | tokens | kills at moments | kills at operations | runs finished | identical |",
        "|---" + "|--:" * 5 + "|",
    ]
    for case in cases:
        numbers = " | ".join(f"{case[name]:,}" for name in ("length", "moments", "operations", "finished", "identical"))
        lines.append(f"| {case['name']} | {numbers} |")
    return "\n".join(lines) + "\n"


def _moment(moment: Mapping[str, Any]) -> str:
    said = "\n".join(f"    {line}" for line in moment["said"])
    after = {True: "Resumed: the same bits.", False: "Resumed: OTHER BITS.", None: "Nothing was begun."}
    output = "an output is there" if moment["output_there"] else "no output is there"
    return (
        f"**{moment['name'].capitalize()}**: exit code {moment['code']}, the job is {moment['state']}, {output}. "
        f"{after[moment.get('identical')]}\n\n{said}\n"
    )
