"""Ours beside other runtimes, in one run: nobody computes while another one does, medians of runs in turns.

python -m tools.bench                 # all cases; writes docs/results/performance.md and docs/results/performance/
python -m tools.bench smollm2 short   # these cases again; the other figures stay
python -m tools.bench --quick         # every case once at small lengths, into .cache/bench/quick
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.cases import CASES, Case, quick
from tools.bench.measure import measure_case
from tools.bench.page import write_page
from tools.bench.prepare import prepare
from tools.fetch_models import FetchError
from tools.machine import machine
from tools.measured_process import ProcessFailedError
from twoheads.runtime.execution.crew import available_threads

__all__ = ["main"]

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("numpy", "onnxruntime", "torch", "transformers", "openvino", "xllamacpp")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _ordered(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as the cases are listed, whichever was measured last."""
    return {name: results[name] for name in CASES if name in results}


def _measure(cases: Sequence[Case], folder: Path) -> None:
    """Measures the cases one after the other; the page is written after each of them."""
    file = folder / "performance" / "performance.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    prepared: dict[str, dict[str, str]] = {}
    for case in cases:
        _say(f"{case.name}: {case.title}")
        began = time.perf_counter()
        figures = measure_case(case, prepare(case, prepared, _say), case.threads or available_threads(), _say)
        took = {"took_seconds": round(time.perf_counter() - began)}
        results[case.name] = {**figures, **took, "machine": machine(PACKAGES)}
        file.parent.mkdir(parents=True, exist_ok=True)
        results = _ordered(results)
        file.write_text(json.dumps(results, indent=1) + "\n")
        write_page(results, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes figures, page and plots; returns 1 if a case can't be prepared."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help=f"of: {', '.join(CASES)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="small lengths, one run each")
    parser.add_argument("--out", type=Path, help="instead of docs/ (with --quick: of .cache/bench/quick)")
    parser.add_argument("--page", action="store_true", help="measure nothing, write page and plots of the figures")
    options = parser.parse_args(arguments)
    for name in options.case:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; there are: {', '.join(CASES)}")
    cases = [] if options.page else [CASES[name] for name in options.case or CASES]
    folder: Path = options.out or (ROOT / ".cache" / "bench" / "quick" if options.quick else ROOT / "docs" / "results")
    if options.page:
        write_page(json.loads((folder / "performance" / "performance.json").read_text()), folder)
    try:
        _measure([quick(case) if options.quick else case for case in cases], folder)
    except (FetchError, ProcessFailedError) as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
