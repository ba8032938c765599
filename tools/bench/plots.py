"""Draws the benchmark's figures: time by length, ours over others, and where our time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tools.bench.figures import NAMES, PARTS, described, measured, speed_up

__all__ = ["draw"]

mpl.use("Agg")

COLOURS = {
    "ours": "#0b6e4f",
    "ours-openvino": "#6bb392",
    "ours-openvino-bf16": "#b5d9c8",
    "ours-attention": "#0b6e4f",
    "tile-engine": "#b5d9c8",
    "torch": "#d1495b",
    "torch-attention": "#d1495b",
    "onnxruntime": "#2e6f9e",
    "onnxruntime-fixed": "#8fb8d8",
    "openvino-f32": "#7b5ea7",
    "openvino-default": "#bba6d6",
    "llama.cpp": "#b98b2f",
}
PART_COLOURS = {
    "tokenwise": "#0b6e4f",
    "attention": "#6bb392",
    "head": "#2e6f9e",
    "host": "#d1495b",
    "idle": "#d9d9d9",
}
BAR = 0.36
"""Inches of a horizontal bar with its gap."""


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Writes ``CASE_time.png``, ``speed_up.png`` and ``breakdown.png`` into ``folder``."""
    for name, case in results.items():
        if len(measured(case, case["contenders"][0])) > 1:
            _time(case, folder / f"{name}_time.png")
    _speed_up(results, folder / "speed_up.png")
    _breakdown(results, folder / "breakdown.png")


def _save(figure: Figure, file: Path) -> None:
    # No name of the software, so that equal figures are equal files.
    figure.savefig(file, dpi=110, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})


def _name(contender: str) -> str:
    return NAMES[contender].replace("`", "")


def _time(case: Mapping[str, Any], file: Path) -> None:
    """Seconds over tokens, both logarithmic."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for contender in reversed(case["contenders"]):
        rows = measured(case, contender)
        lengths, seconds = [row["length"] for row in rows], [row["seconds"] for row in rows]
        ours = contender.startswith("ours")
        axes.plot(
            lengths, seconds, "o-", color=COLOURS[contender], label=_name(contender),
            linewidth=2.6 if ours else 1.6, markersize=5 if ours else 4, zorder=3 if ours else 2,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row["length"] for row in case["rows"]})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds")
    axes.grid(color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(case["title"], fontsize=10, loc="left")
    axes.legend(*_reversed(axes.get_legend_handles_labels()), frameon=False, fontsize=9)
    _save(figure, file)


def _reversed(handles_and_labels: tuple[Any, Any]) -> tuple[Any, Any]:
    handles, labels = handles_and_labels
    return handles[::-1], labels[::-1]


def _speed_up(results: Mapping[str, Any], file: Path) -> None:
    """A bar for every other contender at the longest length of every case that has one."""
    bars: list[tuple[str, str, float]] = []
    for name, case in results.items():
        for other, ratios in speed_up(case).items():
            if ratios:
                longest = max(ratios)
                row = next(row for row in measured(case, other) if row["length"] == longest)
                title = described(row).replace("`", "")
                bars.append((f"{name}, {longest:,} tokens: {title}", other, ratios[longest]))
    figure = Figure(figsize=(8.5, 1.2 + BAR * max(len(bars), 1)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(bars))
    axes.barh(places, [ratio for _, _, ratio in bars], color=[COLOURS[other] for _, other, _ in bars], height=0.7)
    for place, (_, _, ratio) in zip(places, bars, strict=True):
        axes.annotate(
            f"{ratio:.2f}", (ratio, place), (6, 0), textcoords="offset points", va="center", fontsize=9, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1, zorder=3)
    axes.set_yticks(places, [label for label, _, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel("its time / ours (right of the line, ours is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def _breakdown(results: Mapping[str, Any], file: Path) -> None:
    """Shares of our threads' time, a bar for every case and length."""
    rows = [
        (f"{name}, {row['length']:,}", row["detail"]["breakdown"])
        for name, case in results.items()
        for row in measured(case, case["contenders"][0])
    ]
    figure = Figure(figsize=(8.5, 1.6 + BAR * max(len(rows), 1)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    for part, title in PARTS.items():
        shares = [100 * parts[part] / sum(parts.values()) for _, parts in rows]
        if any(shares):
            axes.barh(range(len(rows)), shares, left=left, color=PART_COLOURS[part], height=0.7, label=title)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the threads' time")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS), frameon=False, fontsize=9)
    _save(figure, file)
