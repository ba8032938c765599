"""Recurrent models of real shape and random weights; writes docs/results/hybrids.md and its figures.

python -m tools.hybrids agree      # distances from float64 at 1, 255, 256, 257 and 5,000 tokens
python -m tools.hybrids drift      # the same along 100,000 tokens
python -m tools.hybrids time       # time and memory up to 32,768 tokens, ours and torch in turns: an idle machine
python -m tools.hybrids page       # the page again from what was measured
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.cases import Case
from tools.bench.measure import measure_case
from tools.hybrids.agree import agreement
from tools.hybrids.drift import drift
from tools.hybrids.models import BLOCK, MODELS, folder_of
from tools.hybrids.page import render
from tools.machine import machine
from tools.measured_process import measure, twoheads_command
from twoheads.runtime.execution.crew import available_threads

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "onnxruntime", "torch", "transformers")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _compiled(name: str, scratch: Path) -> dict[str, str]:
    """The model's folder and its bundle, made where they are not there."""
    source, bundle = folder_of(scratch, name), scratch / f"{name}.bundle"
    if not bundle.exists():
        words = ("compile", source, "-o", bundle, "--block-size", BLOCK, "--lowering", MODELS[name].lowering)
        done = measure(twoheads_command(*words), show_stderr=True)
        if done.code:
            raise SystemExit(f"{name} does not compile")
    return {"source": str(source), "bundle": str(bundle)}


def _timed(name: str, paths: dict[str, str], lengths: tuple[int, ...], repeats: int) -> dict[str, Any]:
    case = Case(
        name=name,
        title=MODELS[name].title,
        question="",
        model=name,
        contenders=("ours", "torch"),
        lengths=lengths,
        quick_lengths=(),
        repeats=repeats,
        vocabulary=MODELS[name].entries()["vocab_size"],
    )
    return measure_case(case, paths, available_threads(), _say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures one thing, merges it into the figures and writes the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.hybrids", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["agree", "drift", "time", "page"])
    parser.add_argument("models", nargs="*", help=f"of: {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--lengths", type=int, nargs="+", help="instead of those of the page")
    parser.add_argument("--repeats", type=int, default=1, help="of every time; the median counts")
    parser.add_argument("--scratch", type=Path, default=ROOT / ".cache" / "hybrids", help="where models are kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results", help="where page and figures go")
    asked = parser.parse_args(arguments)
    for name in asked.models:
        if name not in MODELS:
            parser.error(f"there is no model {name!r}; there are: {', '.join(MODELS)}")
    file = asked.docs / "hybrids.json"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    asked.scratch.mkdir(parents=True, exist_ok=True)
    for name in asked.models or MODELS if asked.what != "page" else ():
        found = _measured(asked, name)
        if found is not None:
            results.setdefault(name, {})[asked.what] = {"rows": found, "machine": machine(PACKAGES)}
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (asked.docs / "hybrids.md").write_text(render(results), encoding="utf-8")
    return 0


def _measured(asked: argparse.Namespace, name: str) -> list[dict[str, Any]] | None:
    """The rows of one model; ``None`` where there is nothing to measure."""
    _say(f"{asked.what}: {name}")
    if asked.what == "drift":
        tokens = (asked.lengths or [100_000])[0]
        return drift(name, asked.scratch, tokens) if MODELS[name].drift else None
    paths = _compiled(name, asked.scratch)
    if asked.what == "agree":
        return agreement(name, asked.scratch, tuple(asked.lengths or (1, 255, 256, 257, 5000)))
    rows: list[dict[str, Any]] = _timed(name, paths, tuple(asked.lengths or (2048, 8192, 32768)), asked.repeats)["rows"]
    return rows


if __name__ == "__main__":
    sys.exit(main())
