"""Renders docs/results/hybrids.md from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.hybrids.models import MODELS
from tools.machine import machine_line
from tools.markdown import table

__all__ = ["render"]

INTRODUCTION = """\
# Hybrids: recurrent layers beside transformers

Shapes of known models, random weights, float32, blocks of 256. The library is transformers with its torch code, which
a machine without a GPU has. Distances are the largest difference of hidden states by their largest magnitude, from the
library's own code in float64; what the library's float32 has there is the floor.

Written by `python -m tools.hybrids`, from `hybrids.json`.
"""

AGREE = """\
## At lengths around a block

`python -m tools.hybrids agree`. Calls are counted where they are made, and equal the formula.
"""

TIME = """\
## Time and memory

`python -m tools.hybrids time`: hidden states of all tokens, each in a process of its own, in turns. Seconds per
thousand tokens stay where they are where time is linear. Peaks are resident memory, with weights, libraries and the
hidden states that are the result; what stands behind that is what tokens cost beside it.
"""

DRIFT = """\
## Along 100,000 tokens

`python -m tools.hybrids drift`: three layers of width 256 (a recurrence, full attention, a recurrence) with states of
the same size, so that float64 can be afforded. The library computes pieces of 1,000 tokens with its own cache, the
bundle one run. A state that drifted would part from float64 more and more. (Mamba-2 has Granite's mathematics; the
library's own Mamba-2 is wrong in pieces.)
"""


def render(results: Mapping[str, Any]) -> str:
    """The page of all ``results`` there are."""
    lines = [*INTRODUCTION.splitlines(), ""]
    for text, what, headings, cells in (
        (AGREE, "agree", ("tokens", "ours", "library's float32", "ratio", "calls"), _agreed),
        (TIME, "time", _TIMES, _times),
        (DRIFT, "drift", ("tokens", "ours", "library's float32", "ratio"), _drifted),
    ):
        measured = {name: results[name][what] for name in MODELS if what in results.get(name, {})}
        if not measured:
            continue
        lines += [*text.splitlines(), ""]
        for name, found in measured.items():
            title = MODELS[name].title.partition(":")[0] if what == "drift" else MODELS[name].title
            lines += [f"**{title}.** {machine_line(found['machine'])}", ""]
            lines += table(headings, cells(found["rows"]))
    return "\n".join(lines).rstrip("\n") + "\n"


_TIMES = ("tokens", "ours, s", "s per 1,000", "peak, MB", "torch, s", "s per 1,000", "peak, MB", "torch / ours")


def _distances(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['ours']:.1e}", f"{row['library']:.1e}", f"{row['ours'] / row['library']:.2f}"]


def _agreed(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[f"{row['tokens']:,}", *_distances(row), f"{row['calls']:,} of {row['formula']:,}"] for row in rows]


def _drifted(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[f"{row['from']:,} to {row['to']:,}", *_distances(row)] for row in rows]


def _times(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = {(row["contender"], row["length"]): row for row in rows}
    lines: list[list[str]] = []
    for length in dict.fromkeys(row["length"] for row in rows):
        ours, torch = found["ours", length], found["torch", length]
        both = "seconds" in ours and "seconds" in torch
        ratio = f"{torch['seconds'] / ours['seconds']:.1f}" if both else ""
        lines.append([f"{length:,}", *_timed(ours), *_timed(torch), ratio])
    return lines


def _timed(row: Mapping[str, Any]) -> list[str]:
    if "seconds" not in row:
        return [str(row["reason"]), "", ""]
    each = 1000 * row["seconds"] / row["length"]
    return [f"{row['seconds']:.1f}", f"{each:.2f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
