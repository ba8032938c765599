"""Builds real models' engines with every accelerator's compiler that is installed; writes docs/results/accelerators.md.

``python -m tools.accelerators`` compiles MiniLM and SmolLM2 at blocks of 128 and 256 and gives every engine, with the
weights of its first stage, to each compiler. ``--environments DIR`` names a folder with an environment for each target,
``DIR/rknn/bin/python``; without one a target's own environment or this one is used. What is not installed is said.
Attention is lowered as each target prefers it, as by ``compile --for``, or as ``--lowering`` says. ``--add`` leaves
what the page says of other targets, models and blocks as it is, and of a target that is not installed. The page is
written after every bundle.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tools.fetch_models import model_path
from tools.machine import machine, machine_line
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.accelerators.build import Built, build_engines
from twoheads.export.accelerators.lint import lint_bundle
from twoheads.export.accelerators.target import Target, load_target, target_names
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["Row", "main", "page"]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
MODELS = ("minilm", "smollm2")
BLOCKS = (128, 256)
CHARACTERS = 100_000
"""Of the text that int8 is calibrated with: five runs of more than 2,000 tokens."""


@dataclass(frozen=True, slots=True)
class Row:
    """One bundle through one compiler; ``built`` is ``None`` where it is not installed."""

    target: Target
    model: str
    block_size: int
    built: Built | None
    findings: int
    lowering: str = "tile"


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="a folder of environments by target")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS)
    parser.add_argument("--targets", nargs="+", default=target_names())
    parser.add_argument("--lowering", choices=("tile", "stock"))
    parser.add_argument("--add", action="store_true", help="keep what the page says of what is not measured")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "accelerators.md")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    earlier = options.out.read_text(encoding="utf-8") if options.add else ""
    rows: list[Row] = []
    for model in options.models:
        for block_size in options.blocks:
            for lowering, names in _by_lowering(options.targets, options.lowering).items():
                with tempfile.TemporaryDirectory() as scratch:
                    bundle = _bundle(model, block_size, lowering, Path(scratch))
                    rows += [_row(bundle, name, model, options.environments) for name in names]
                options.out.write_text(page(rows, earlier), encoding="utf-8")
    return 0


def _by_lowering(names: list[str], lowering: str | None) -> dict[str, list[str]]:
    """The targets, by the lowering of the bundle that they get."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(lowering or load_target(name).lowering, []).append(name)
    return found


def _bundle(model: str, block_size: int, lowering: str, scratch: Path) -> Bundle:
    source = model_path(model, ROOT / ".cache" / "models")
    if source is None:
        raise SystemExit(f"fetch the model first: python -m tools.fetch_models {model}")
    path = write_bundle(compile_model(source, block_size=block_size, lowering=lowering), scratch / "bundle")
    return read_bundle(path, check="size")


def _row(bundle: Bundle, name: str, model: str, environments: Path | None) -> Row:
    target = load_target(name)
    python = None if environments is None else environments / name / "bin" / "python"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            built = build_engines(
                bundle,
                name,
                Path(scratch),
                python=python if python is not None and python.exists() else None,
                calibrate=_text() if target.precisions[0] == "int8" else None,
                check=True,
                once=True,
            )
        except InputError as error:
            logger.info("%s", error)
            built = None
    findings = len(lint_bundle(bundle, target))
    logger.info("%s %d %s: %s", model, bundle.program.block_size, name, _accepted(built))
    return Row(target, model, bundle.program.block_size, built, findings, bundle.manifest.lowering)


def _text() -> str:
    """Python's language reference, which every installation has."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:CHARACTERS]


def _accepted(built: Built | None) -> str:
    if built is None:
        return "not installed"
    return f"{len(built.entry.artifacts)} of {len(built.entry.artifacts) + len(built.refused)}"


HEADER = Template("""# Accelerators

What vendors' compilers make of the engines of two real models, without the accelerator: every engine file of a bundle,
with the weights of its first stage, attention lowered to tiles or, where a line says so, to stock softmax. Errors are
those of the compiler's emulator, simulator or CPU runtime against ONNX Runtime in float32, on random values, as a share
of the largest magnitude of an output; the worst of all engines. In int8, ranges of values are those of runs over the
first four fifths of a text, and the error is that of a call of a run over the last fifth. *Off the accelerator* is what
the compiler's own report says. Build times are upper bounds: other jobs may have run meanwhile. Written by
`python -m tools.accelerators`.

Given operators one by one (158 models of one node each, values of minus infinity among them), OpenVINO's CPU plugin
2026.4.1 computes all as ONNX Runtime does but `ReduceMax` of a row of nothing but minus infinity, which it makes
float32's lowest number. Engines compare maxima with a finite bound, so its data file has no rules. Those of IREE and
TensorRT for RTX have none because nothing was measured operator by operator.

Never run here: TensorRT, which needs the GPU that it builds for (its code is that of TensorRT for RTX), and Core ML's
packages, which only macOS runs; `build` checks what they declare.

$machine

| target | compiler | precision | model, block | accepted | nodes off it | size | build time | error |
|---|---|---|---|---:|---:|---:|---:|---:|
""")


TABLE_LINE = re.compile(r"^\| (?!target \|).*\n", re.MULTILINE)
DETAILS = re.compile(r"^\nOff the accelerator, (\S+), (\S+), (\d+).*:\n\n(?:- .*\n)+", re.MULTILINE)
"""What :func:`_details` writes, with the target's name, the model and the block."""
REFUSAL = re.compile(r"^- (\S+) refuses \S+ of (\S+) at (\d+): .*\n", re.MULTILINE)
"""What :func:`_refusals` writes, with the same."""

Place = tuple[str, str, int]
"""A target's title, the model and the block."""


def page(rows: list[Row], earlier: str = "") -> str:
    """The page's text, with what the page ``earlier`` says of what ``rows`` do not measure."""
    former = {_place_of(line): line for line in TABLE_LINE.findall(earlier)}
    # What is not installed here may have been measured elsewhere.
    new = {_key(row): row for row in rows if row.built is not None or _key(row) not in former}
    lines = former | {place: _line(row) for place, row in new.items()}
    parts = [HEADER.substitute(machine=machine_line(machine(("onnxruntime",))))]
    parts += [lines[place] for place in sorted(lines)]
    parts.append("\n")
    for pattern, written in ((DETAILS, _details), (REFUSAL, _refusals)):
        kept = [match for match in pattern.finditer(earlier) if _place_found(match) not in new]
        parts += [match[0] for match in kept]
        parts += [written(row, row.built) for row in new.values() if row.built is not None]
    return "".join(parts).rstrip() + "\n"


def _key(row: Row) -> Place:
    return row.target.title, row.model, row.block_size


def _place_of(line: str) -> Place:
    cells = [cell.strip() for cell in line.split("|")]
    model, block, *_ = cells[4].split(", ")
    return cells[1], model, int(block)


def _place_found(match: re.Match[str]) -> Place:
    return load_target(match[1]).title, match[2], int(match[3])


def _place(row: Row) -> str:
    return f"{row.model}, {row.block_size}" + (f", {row.lowering}" if row.lowering != "tile" else "")


def _line(row: Row) -> str:
    place = _place(row)
    if row.built is None:
        return f"| {row.target.title} | not installed | | {place} | | | | | |\n"
    built, entry = row.built, row.built.entry
    errors = [artifact.error for artifact in entry.artifacts.values() if artifact.error is not None]
    cells = (
        row.target.title,
        f"{entry.compiler} {entry.version.partition('-')[0]}",
        entry.precision,
        place,
        _accepted(built),
        str(len(_off(built))) if _off(built) else "none",
        f"{sum(built.sizes.values()) / 1e6:.1f} MB",
        f"{sum(artifact.seconds for artifact in entry.artifacts.values()):.0f} s",
        f"{max(errors):.1e}" if errors else "no emulator",
    )
    return f"| {' | '.join(cells)} |\n"


def _off(built: Built) -> list[str]:
    return [f"{name}: {node}" for name, artifact in built.entry.artifacts.items() for node in artifact.off]


def _details(row: Row, built: Built) -> str:
    """Which engines leave what, and how much of it was foretold."""
    lines = [
        f"- {name}: {', '.join(artifact.off)}\n" for name, artifact in built.entry.artifacts.items() if artifact.off
    ]
    told = f"`twoheads lint` names {row.findings} nodes before the build"
    return f"\nOff the accelerator, {row.target.name}, {_place(row)} ({told}):\n\n{''.join(lines)}" if lines else ""


def _refusals(row: Row, built: Built) -> str:
    return "".join(
        f"- {row.target.name} refuses {name} of {row.model} at {row.block_size}: {message}\n"
        for name, message in built.refused.items()
    )


if __name__ == "__main__":
    raise SystemExit(main())
