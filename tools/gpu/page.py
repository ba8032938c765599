"""The page about GPUs: what happens there, what was checked without one, and what a card showed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.gpu.steps import STEPS
from tools.machine import machine_line
from tools.markdown import table

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("template.md")


def render(figures: dict[str, Any] | None) -> str:
    """The page of what :mod:`tools.gpu` found, or, with ``None``, that nothing ran yet."""
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.replace("$measured\n", NOTHING if figures is None else _measured(figures))


NOTHING = """**None of this has run on hardware yet.** On a machine with an NVIDIA GPU, from a bare checkout,
`python3 -m tools.gpu` takes eight minutes at most, checks each part, measures, and writes what it found here.

"""


def _measured(figures: dict[str, Any]) -> str:
    card = next((step["facts"]["card"] for step in figures["steps"] if "card" in step["facts"]), None)
    name = f"On an {card}" if card else "**No card was reached: none of this has run on hardware yet**"
    lines = [f"{name}, by `python3 -m tools.gpu`. {machine_line(figures['machine'])}", ""]
    rows = [(_title(step["name"]), _outcome(step), f"{step['seconds']:.0f}") for step in figures["steps"]]
    lines += table(("step", "outcome", "seconds"), rows, left=2)
    for step in figures["steps"]:
        if step["rows"]:
            headings, *cells = step["rows"]
            lines += table(headings, cells, left=1)
    return "\n".join(lines)


def _title(name: str) -> str:
    return STEPS[name].title if name in STEPS else name


def _outcome(step: dict[str, Any]) -> str:
    facts = "; ".join(f"{what} {value}" for what, value in step["facts"].items())
    return f"**failed**: {step['problem']}" if step["problem"] else facts or "done"
