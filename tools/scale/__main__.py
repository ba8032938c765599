"""Measures, merges the result into docs/results/scale.json, and writes docs/results/scale.md.

python -m tools.scale windowed 65536 131072     # any lengths, each merged when it is done
python -m tools.scale full 131072               # full causal attention of one layer
python -m tools.scale kills 15                  # SIGKILL, so often at random moments and in checkpoints, for every case
python -m tools.scale disk                      # a small disk that becomes full; needs root
python -m tools.scale page                      # the page again from what was measured
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.scale.full_disk import measure_full_disk
from tools.scale.kills import measure_kills
from tools.scale.lengths import KINDS, measure_length
from tools.scale.page import render
from twoheads.runtime.measurement.profiler import machine_text

DOCS = Path(__file__).parents[2] / "docs" / "results"


def main() -> int:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where scale.json and scale.md are")
    parser.add_argument("--scratch", type=Path, help="where values and outputs go (10 GB for a million tokens)")
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in KINDS:
        lengths = commands.add_parser(kind, help=f"time and memory by length, {kind} attention")
        lengths.add_argument("lengths", type=int, nargs="+")
        lengths.add_argument("--memory-limit", default="1GB")
    commands.add_parser("kills", help="runs killed at random moments").add_argument("count", type=int)
    commands.add_parser("disk", help="runs that find the disk full; needs root")
    commands.add_parser("page", help="write the page again")
    options = parser.parse_args()
    for length in getattr(options, "lengths", []):
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            row = measure_length(Path(folder), options.command, length, options.memory_limit)
        today = {"machine": machine_text(), "day": datetime.now(UTC).date().isoformat()}
        _merge(options.docs, {options.command: {str(length): row | today}})
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if options.command == "kills":
            found = measure_kills(Path(folder), options.count)
        elif options.command == "disk":
            found = measure_full_disk(Path(folder))
        else:
            found = iter(())
        for case in found:
            _merge(options.docs, {options.command: {case["name"]: case}})
    _merge(options.docs, {})
    return 0


def _merge(docs: Path, found: dict[str, dict[str, Any]]) -> None:
    """Adds what was found to the results that are there by now, one by one, and writes the page."""
    path = docs / "scale.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in found.items():
        results[name] = results.get(name, {}) | value
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (docs / "scale.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
