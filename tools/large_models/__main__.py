"""Measures, merges the result into docs/results/large_models.json, and writes docs/results/large_models.md.

python -m tools.large_models 7b int4 --layers 4 --tokens 2048 --scratch DIR   # a row; the model stays there
python -m tools.large_models page                                             # the page again from what was measured
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.large_models.make import SHAPES
from tools.large_models.measure import Case, measure_case
from tools.large_models.page import render
from twoheads.runtime.measurement.profiler import machine_text

DOCS = Path(__file__).parents[2] / "docs" / "results"


def main() -> int:
    """Measures one row, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=[*SHAPES, "page"])
    parser.add_argument("weights", nargs="?", default="float32", choices=["float32", "int8", "int4"])
    parser.add_argument("--layers", type=int, help="of the model; all of them by default")
    parser.add_argument("--tokens", type=int, default=0, help="of a run that is compared with a reference")
    parser.add_argument("--limit", default="3GB", help="of the run's memory")
    parser.add_argument("--scratch", type=Path, help="where the model, the bundle and the output go")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its numbers are")
    asked = parser.parse_args()
    path = asked.docs / "large_models.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if asked.size != "page":
        if asked.scratch is None:
            parser.error("say by --scratch where the model, the bundle and the output go")
        layers = asked.layers or SHAPES[asked.size].num_hidden_layers
        case = Case(asked.size, layers, asked.weights, asked.tokens, asked.limit)
        load = os.getloadavg()[0]
        row = measure_case(asked.scratch, case)
        row |= {"machine": machine_text(), "day": datetime.now(UTC).date().isoformat(), "load": load}
        results[case.name] = row
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (asked.docs / "large_models.md").write_text(render(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
