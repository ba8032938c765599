"""Whether a state of this repository is slower than another: whole commands of the two, one after the other in turns.

``python -m tools.before_after_time OTHER`` compiles SmolLM2 and MiniLM and runs them with the code of the checkout
``OTHER`` and with this one, and puts the table into ``docs/results/before-after.md``. It takes a quarter of an hour on
an idle machine; on a busy one its numbers say little.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from tools.before_after import ROOT, side_environment
from tools.fetch_models import DEFAULT_DIR, model_path
from tools.machine import machine, machine_line
from tools.markdown import table
from tools.measured_process import Measured, ProcessFailedError, measure, twoheads_command

PAGE = ROOT / "docs" / "results" / "before-after.md"

BEGIN, END = "<!-- times -->", "<!-- end of times -->"
"""Between these lines the page has what this tool writes."""

COLUMNS = (
    "command",
    "processor time, s, before",
    "today",
    "ratio",
    "wall clock, s, before",
    "today",
    "ratio",
    "peak, MiB, before",
    "today",
)


@dataclass(frozen=True, slots=True)
class Command:
    """What is timed.

    Attributes:
        name: In the table.
        words: Of the command line, for the state before and for today's.
        pairs: How often each runs, behind one warm-up.
    """

    name: str
    words: tuple[tuple[object, ...], tuple[object, ...]]
    pairs: int


def _measured(checkout: Path, words: Sequence[object]) -> Measured:
    environment = {**side_environment(checkout), "OMP_NUM_THREADS": "2"}
    done = measure(twoheads_command(*words), environment=environment)
    if done.code:
        raise ProcessFailedError(f"{' '.join(map(str, words))}: {done.err}")
    return done


def in_turns(sides: tuple[Path, Path], command: Command) -> list[tuple[Measured, Measured]]:
    """Pairs of measurements of the two states, behind a warm-up of each."""
    pairs = [
        (_measured(sides[0], command.words[0]), _measured(sides[1], command.words[1])) for _ in range(command.pairs + 1)
    ]
    return pairs[1:]


def row(name: str, pairs: Sequence[tuple[Measured, Measured]]) -> list[str]:
    """A line of the table: medians, and the median of the pairs' ratios."""
    cells = [name]
    for attribute in ("cpu_seconds", "seconds"):
        numbers = [(getattr(before, attribute), getattr(after, attribute)) for before, after in pairs]
        cells += [f"{median(side):.2f}" for side in zip(*numbers, strict=True)]
        cells.append(f"{median(after / before for before, after in numbers):.2f}")
    return cells + [f"{max(one.peak_bytes for one in side) / 2**20:,.0f}" for side in zip(*pairs, strict=True)]


def commands(folder: Path, models: dict[str, Path]) -> tuple[list[Command], list[Command]]:
    """Those that compile, whose bundles lie in ``folder``, and those that run them."""
    made, run = [], []
    for name, options, length, output in (
        ("minilm", ("--block-size", 128), 400, "hidden"),
        ("smollm2", ("--block-size", 256), 1024, "last"),
    ):
        tokens = folder / f"{name}.npy"
        np.save(tokens, np.random.default_rng(length).integers(3, 1000, length))
        bundles = tuple(folder / f"{name}.{side}" for side in ("before", "today"))
        sides = [("compile", models[name], "-o", bundle, "--force", *options) for bundle in bundles]
        made.append(Command(f"`compile`, {name}, `--no-generation`", (sides[0], (*sides[1], "--no-generation")), 4))
        ran = [
            ("run", bundle, "--tokens", tokens, "-o", f"{bundle}.npz", "--output", output, "--threads", 2)
            for bundle in bundles
        ]
        run.append(Command(f"`run`, {name}, {length:,} tokens, `--output {output}`", (ran[0], ran[1]), 7))
    return made, run


def written(page: str, lines: str) -> str:
    """The page with these lines in the place of those that it had.

    Raises:
        ValueError: It has no such place.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"{PAGE} has no lines between {BEGIN} and {END}")
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{lines}\n{END}", page, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the state before")
    options = parser.parse_args(arguments)
    models: dict[str, Path] = {}
    for name in ("minilm", "smollm2"):
        path = model_path(name, ROOT / DEFAULT_DIR)
        if path is None:
            raise SystemExit(f"fetch the model first: python -m tools.fetch_models {name}")
        models[name] = path
    sides, rows = (options.other.resolve(), ROOT), list[list[str]]()
    with tempfile.TemporaryDirectory() as place:
        for command in (command for part in commands(Path(place), models) for command in part):
            rows.append(row(command.name, in_turns(sides, command)))
            print(" | ".join(rows[-1]), flush=True)
    lines = [machine_line(machine(("torch", "onnxruntime"))), "", *table(COLUMNS, rows, left=1)]
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), "\n".join(lines).rstrip()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
