"""Takes real models to every target that runs on this processor; writes docs/results/devices.json and devices.md.

``python -m tools.devices`` goes the whole way of each: compile, build, pack, copy to an empty folder, install what the
pack's README says into an environment of its own, ``twoheads canary``, ``./run`` on a text, and the result beside the
original in float32. ``--targets openvino --models minilm`` measures these alone and keeps what the file says of others.
A target whose compiler is not installed is told, with the command that installs it. ``--precisions`` measures what
lossy precisions cost instead, all or those that are named, as ``qnn:w8a16``; ``--characters`` shortens the text, of
whose end they are measured, for emulators that take seconds a call, and ``--rounding`` measures what the compiler gets
in the place of what it makes of it, where that has whole numbers. ``--page`` writes the page from the file and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.devices.journey import PLAIN, Row, runnable, travel
from tools.devices.original import CASES, TEXT, load_original, model_file
from tools.devices.page import render
from tools.devices.precisions import Cost, costs, lossy
from tools.devices.rounded import in_models
from tools.machine import machine
from twoheads.graphs.errors import TwoheadsError

__all__ = ["main"]

logger = logging.getLogger("tools.devices")

PAGE = Path(__file__).parents[2] / "docs" / "results" / "devices.md"
CALIBRATION = 40_000
"""Characters of the text's end, from which int8 takes its ranges; the run is over its beginning."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for and writes the page; exit code 1 where a journey failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=[PLAIN, *runnable()], choices=[PLAIN, *runnable()])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--length", type=int, help="tokens; by default 500 of MiniLM, 1,024 of SmolLM2")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--precisions", nargs="*", metavar="TARGET:PRECISION", help="measure what these cost instead")
    parser.add_argument("--characters", type=int, default=CALIBRATION, help="of the text, for precisions")
    parser.add_argument("--rounding", action="store_true", help="measure precisions by what compilers get")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools").setLevel(logging.INFO)
    file = options.out.with_suffix(".json")
    figures: dict[str, Any] = {"rows": [], "failed": []}
    if file.exists():
        figures = json.loads(file.read_text(encoding="utf-8"))
    failed = False
    if options.precisions is not None:
        _measure_precisions(figures, file, options)
    for model in [] if options.page or options.precisions is not None else options.models:
        original = load_original(model, options.length)
        for target in options.targets:
            row, problem = _try(original, target, options.block_size)
            failed |= problem is not None
            _keep(figures, (target, model), row, problem)
            file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    options.out.write_text(render(figures), encoding="utf-8")
    return int(failed)


def _measure_precisions(figures: dict[str, Any], file: Path, options: argparse.Namespace) -> None:
    """Puts each in the place of an earlier figure, and the file on the disk after each."""
    named = {tuple(one.split(":")) for one in options.precisions}
    cases = [case for case in (in_models() if options.rounding else lossy()) if not named or case in named]
    if unknown := named - set(cases):
        raise SystemExit(f"nothing here measures {', '.join(':'.join(one) for one in sorted(unknown))}")
    text = TEXT.read_text(encoding="utf-8")[-options.characters :]

    def keep(cost: Cost) -> None:
        logger.info("%s", cost)
        rows = [one for one in figures.get("costs", []) if _place(one) != _place(asdict(cost))]
        figures["costs"] = sorted([*rows, _here(cost)], key=_place)
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    for model in options.models:
        costs(model, model_file(model), cases, options.block_size, text, keep, rounding=options.rounding)


def _place(cost: dict[str, Any]) -> tuple[str, ...]:
    """What a later measurement of the same takes."""
    return tuple(cost[name] for name in ("model", "target", "precision", "backend"))


def _try(original: Any, target: str, block_size: int) -> tuple[Row | None, str | None]:
    """The journey, or why it ended."""
    text = TEXT.read_text(encoding="utf-8")[-CALIBRATION:]
    try:
        row = travel(original, target, block_size, text)
    except (TwoheadsError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        logger.info("%s, %s: %s", original.name, target, problem)
        return None, problem
    logger.info("%s", row)
    return row, None


def _keep(figures: dict[str, Any], place: tuple[str, str], row: Row | None, problem: str | None) -> None:
    """Puts a journey in the place of an earlier one; a failed one leaves the other's figures alone."""
    figures["failed"] = [entry for entry in figures["failed"] if (entry["target"], entry["model"]) != place]
    if row is None:
        figures["failed"].append({"target": place[0], "model": place[1], "problem": problem})
        return
    figures["rows"] = [entry for entry in figures["rows"] if (entry["target"], entry["model"]) != place]
    figures["rows"] = sorted([*figures["rows"], _here(row)], key=lambda entry: (entry["model"], entry["target"]))


def _here(measured: Row | Cost) -> dict[str, Any]:
    """A row of the file: it says on which machine it was measured, since others may be older."""
    return {**asdict(measured), "machine": machine(("onnxruntime", "torch"))}


if __name__ == "__main__":
    sys.exit(main())
