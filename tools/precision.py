"""Measures what lower precisions cost SmolLM2-135M and MiniLM, and writes docs/results/precision.md.

``python -m tools.precision`` compiles every form, proves it against the original, and tells its distance from the
original in float32: ten minutes. It is `twoheads verify` on a text, in a process of its own for each line.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fetch_models import fetch
from tools.machine import machine, machine_line
from tools.markdown import table
from tools.measured_process import measure_json, twoheads_command
from twoheads.export.verification.report import AS_BUILT, AS_IT_RUNS, COMPILATION

__all__ = ["Row", "main", "page"]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tools" / "data" / "founding_documents.txt"
CALIBRATION = ROOT / "docs" / "design" / "runtime.md"
"""Another text than the one that is compared on."""

PACKAGES = ("numpy", "onnxruntime", "torch", "transformers")
LENGTHS: Mapping[str, int] = {"smollm2": 1024, "minilm": 500}
FORMS: Mapping[str, Sequence[str]] = {
    "float32": (),
    "`--dtype fp16`": ("--dtype", "fp16"),
    "`--weights int8`": ("--weights", "int8"),
    "`--weights int8 --products int8`": ("--weights", "int8", "--products", "int8"),
    "`--weights int4`": ("--weights", "int4"),
}
INT8 = "int8 products, `build --target onnxruntime`"


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one model: the bundle's bytes, and what ``twoheads verify --json`` says of it."""

    model: str
    form: str
    nbytes: int
    report: Mapping[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "precision.md")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: list[Row] = []
    for model in LENGTHS:
        with tempfile.TemporaryDirectory() as scratch:
            rows += _rows(model, fetch(model, ROOT / ".cache" / "models"), Path(scratch))
    options.out.write_text(page(rows, machine_line(machine(PACKAGES))), encoding="utf-8")
    return 0


def _rows(model: str, source: Path, folder: Path) -> list[Row]:
    rows: list[Row] = []
    for form, words in FORMS.items():
        bundle = folder / "-".join(["bundle", *words])
        measure_json(twoheads_command("compile", source, "-o", bundle, "--block-size", 128, *words, "--json"))
        rows.append(_row(model, form, source, bundle))
        logger.info("%s, %s: done", model, form)
    bundle = folder / "bundle"
    built = twoheads_command("build", bundle, "--target", "onnxruntime", "--calibrate", CALIBRATION, "--json")
    measure_json(built, show_stderr=True)
    rows.append(_row(model, INT8, source, bundle, "--target", "onnxruntime"))
    return rows


def _row(model: str, form: str, source: Path, bundle: Path, *words: str) -> Row:
    command = ("verify", bundle, "--against", source, "--text", TEXT, "--length", LENGTHS[model], *words, "--json")
    _, report = measure_json(twoheads_command(*command), expected=(0, 1))
    files = bundle / "targets" / "onnxruntime" if words else bundle
    return Row(model, form, sum(file.stat().st_size for file in files.rglob("*") if file.is_file()), report)


PAGE = """\
# What lower precisions cost

Whole runs on real text, blocks of 128. *Proof* compares with the original with the very same rounded weights, in noise
floors: it says whether the compilation is right, and a bundle passes with 4 or less. The other columns compare the
form as it runs with the original in float32: hidden states by root mean squares, the token that both prefer, the
perplexity of the text (in parentheses the original's), and the cosine between both embeddings.

Of int8 products nothing but the products is rounded to 8 bits, with ranges from another text. Their rounded numbers are
multiplied in float32, as the model says: that is the arithmetic that a compiler is given, and no device's.

Written by `python -m tools.precision`.
"""


def page(rows: Sequence[Row], machine: str) -> str:
    """The page of what was measured.

    Args:
        rows: By model.
        machine: In words.
    """
    lines = [PAGE, machine, ""]
    for model in dict.fromkeys(row.model for row in rows):
        lines += [f"## {model}, {LENGTHS[model]:,} tokens", ""]
        headings = ("form", "size", "proof", "hidden states off by", "same best token", "perplexity", "embedding")
        lines += table(headings, (_cells(row) for row in rows if row.model == model), left=1)
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> Sequence[object]:
    report = row.report
    built = report["built"] is not None
    checks = {(check["name"], check["output"]): check for check in report["checks"]}
    name = AS_BUILT if built else AS_IT_RUNS if (AS_IT_RUNS, "hidden") in checks else COMPILATION
    hidden, embedding = checks[name, "hidden"], checks.get((name, "embedding"))
    same = checks.get((name, "logits"), {}).get("top1_agreement")
    perplexity = report["perplexities"][-1] if report["perplexities"] else None
    return (
        row.form,
        f"{row.nbytes / 1e6:,.0f} MB",
        "not passed" if not report["passed"] else "" if built else f"{report['ratio']:.2f}",
        "to rounding" if name == COMPILATION else f"{hidden['relative']:.2%}",
        "" if same is None else f"{same:.2%}",
        f"{perplexity['bundle']:.2f} ({perplexity['original']:.2f})" if perplexity else "",
        "" if embedding is None or name == COMPILATION else f"{embedding['cosine']:.4f}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
