"""Kills, refusals and long runs of the commands; merged into docs/results/kills.json, of which kills.md is written.

python -m tools.endurance kills 20       # so many kills of every command, or of those that --cases names
python -m tools.endurance places         # no rights and no room: needs root, which the commands do not get
python -m tools.endurance soak 20000     # so many runs in one process
python -m tools.endurance page           # the page again from what was measured

Exit code 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.endurance.bases import make_bases
from tools.endurance.cases import CASES
from tools.endurance.kills import kill_case
from tools.endurance.page import render
from tools.endurance.places import refuse_case
from tools.endurance.processes import in_child, start
from tools.endurance.soak import soak
from twoheads.runtime.measurement.profiler import machine_text

DOCS = Path(__file__).parents[2] / "docs" / "results"


def main(arguments: list[str] | None = None) -> int:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where kills.json and kills.md are")
    parser.add_argument("--cases", default="", help="commands, separated by commas; all if not given")
    parser.add_argument("--seed", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("kills", "kills of every command"), ("soak", "runs in one process")):
        commands.add_parser(name, help=what).add_argument("count", type=int)
    commands.add_parser("places", help="no rights and no room")
    commands.add_parser("page", help="write the page again")
    options = parser.parse_args(arguments)
    faults = 0
    if options.command != "page":
        start()
    # Not a TemporaryDirectory: the processes that are forked would remove it when they end.
    folder = tempfile.mkdtemp(prefix="twoheads-endurance-")
    try:
        for name, found in _measure(options, Path(folder)):
            faults += len(found["faults"])
            today = {"machine": machine_text(), "day": datetime.now(UTC).date().isoformat()}
            _merge(options.docs, options.command, name, found | today)
    finally:
        shutil.rmtree(folder)
    _merge(options.docs, None, "", {})
    return 1 if faults else 0


def _measure(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is found, by name."""
    if options.command == "page":
        return
    bases = folder / "bases"
    in_child(lambda: make_bases(bases))
    folder.chmod(0o755)  # a user without rights reads it
    if options.command == "soak":
        yield "runs", json.loads(in_child(lambda: soak(bases, options.count, options.seed)))
        return
    for name in options.cases.split(",") if options.cases else CASES:
        if options.command == "kills":
            yield name, kill_case(CASES[name], bases, folder / "work", count=options.count, seed=options.seed).facts()
        else:
            yield name, refuse_case(CASES[name], bases, folder / "work")


def _merge(docs: Path, command: str | None, name: str, found: dict[str, Any]) -> None:
    """Adds what was found to the results that are there by now, and writes the page."""
    path = docs / "kills.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if command is not None:
        results[command] = results.get(command, {}) | {name: found}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (docs / "kills.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
