"""Measures, merges the result into docs/results/large_models.json, and writes docs/results/large_models.md.

python -m tools.large_models 7b int4 --layers 4 --tokens 2048 --scratch DIR   # a row; the model stays there
python -m tools.large_models 70b plan --tokens 2048 --scratch DIR             # of its configuration alone
python -m tools.large_models real MODEL --limit 400MB --scratch DIR           # a real model beside its unlimited run
python -m tools.large_models turn MODEL --before CHECKOUT --scratch DIR       # compiled by other code and by this, once
python -m tools.large_models llama.cpp --layers 16 --tokens 512 --scratch DIR --llama-python PYTHON
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

from tools.large_models.llama_cpp import measure_beside_llama
from tools.large_models.make import SHAPES
from tools.large_models.measure import Case, measure_case, measure_plan
from tools.large_models.page import render
from tools.large_models.real import measure_real, real_model
from tools.large_models.turns import measure_turn
from twoheads.runtime.measurement.profiler import machine_text

DOCS = Path(__file__).parents[2] / "docs" / "results"


def main() -> int:
    """Measures one row, or writes the page."""
    asked = _arguments()
    path = asked.docs / "large_models.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if asked.what != "page":
        load = os.getloadavg()[0]
        section, name, row = _measured(asked)
        row |= {"machine": machine_text(), "day": datetime.now(UTC).date().isoformat(), "load": load}
        rows = results.setdefault(section, {})
        if section == "turns":
            row["turns"] = [*rows.get(name, row)["turns"], row.pop("turn")]
        rows[name] = row
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (asked.docs / "large_models.md").write_text(render(results), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SHAPES, "real", "turn", "llama.cpp", "page"])
    parser.add_argument(
        "how",
        nargs="?",
        default="float32",
        help="float32, int8, int4 or plan; of real and turn, the model, or qwen2.5-0.5b",
    )
    parser.add_argument("--layers", type=int, help="of the model; all of them by default")
    parser.add_argument("--tokens", type=int, default=0, help="of a run that is compared with a reference")
    parser.add_argument("--limit", default="3GB", help="of the run's memory")
    parser.add_argument("--outputs", default="hidden,last,logits", help="of a real model's runs")
    parser.add_argument("--scratch", type=Path, help="where the model, the bundle and the output go")
    parser.add_argument("--before", type=Path, help="the checkout that a turn compiles with as well")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its numbers are")
    asked = parser.parse_args()
    if asked.what != "page" and asked.scratch is None:
        parser.error("say by --scratch where the model, the bundle and the output go")
    if asked.what == "turn" and asked.before is None:
        parser.error("say by --before which checkout compiles beside this one")
    if asked.what in SHAPES and asked.how not in ("float32", "int8", "int4", "plan"):
        parser.error(f"{asked.how} are no weights: float32, int8, int4; or plan")
    return asked


def _measured(asked: argparse.Namespace) -> tuple[str, str, dict[str, Any]]:
    """The section of the page, the name of the row, and the row."""
    asked.scratch.mkdir(parents=True, exist_ok=True)
    if asked.what == "real":
        model = real_model(asked.scratch, asked.how)
        outputs = asked.outputs.split(",")
        return "real", f"{_stem(model)}, {asked.limit}", measure_real(asked.scratch, model, asked.limit, outputs)
    if asked.what == "turn":
        model = real_model(asked.scratch, asked.how)
        return "turns", _stem(model), {"turns": [], "turn": measure_turn(asked.scratch, model, asked.before)}
    if asked.what == "llama.cpp":
        layers = asked.layers or SHAPES["1b"].num_hidden_layers
        row = measure_beside_llama(asked.scratch, layers, asked.tokens or 512, asked.llama_python)
        return "llama.cpp", f"1b, {layers} layers, float16", row
    if asked.how == "plan":
        row = measure_plan(asked.scratch, asked.what, asked.tokens or 2048, asked.limit)
        return "plans", f"{asked.what}, {SHAPES[asked.what].num_hidden_layers} layers", row
    layers = asked.layers or SHAPES[asked.what].num_hidden_layers
    case = Case(asked.what, layers, asked.how, asked.tokens, asked.limit)
    return "models", case.name, measure_case(asked.scratch, case)


def _stem(model: Path) -> str:
    return model.stem if model.is_file() else model.name


if __name__ == "__main__":
    sys.exit(main())
