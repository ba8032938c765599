"""Runs SmolLM2 on vendors' emulators and runtimes beside the original in float32, and writes docs/results/emulators.md.

``python -m tools.emulators --layers 2 --length 1024`` compiles a model of the first layers, builds it for each NPU,
and runs it with every engine call in the NPU's emulator: minutes for two layers, half an hour for all thirty.
``--backends openvino openvino-bf16 --layers 30 --length 4096 --block-size 256 --lowerings tile`` runs the whole model
on OpenVINO's CPU plugin. ``--environments DIR`` names a folder with an environment for each target,
``DIR/rknn/bin/python``. ``--add`` leaves what the page says of other backends as it is.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from tools.fetch_models import model_path
from tools.machine import machine, machine_line
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import LoadedSource, load_source
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.export import write_bundle
from twoheads.export.accelerators.build import build_target
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.emulator import EMULATORS, EmulatorBackend

__all__ = ["Row", "main", "page"]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
HALF = [name for name, emulator in EMULATORS.items() if emulator.emulates]
TEXT = ROOT / "docs" / "design" / "runtime.md"
LOWERINGS = ("tile", "stock")
PROCESSORS: Mapping[str, str] = {"openvino": "f32", "openvino-bf16": "bf16"}
"""What runs engines as they are, by what it multiplies in."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One run on an emulator, against the original: errors are norms of differences as shares of the norm."""

    backend: str
    compiler: str
    lowering: str
    layers: int
    length: int
    block_size: int
    calls: int
    off: int
    hidden_error: float
    logits_error: float
    same_best_token: float


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--backends", nargs="+", default=HALF, choices=[*HALF, *PROCESSORS])
    parser.add_argument("--lowerings", nargs="+", default=LOWERINGS, choices=LOWERINGS)
    parser.add_argument("--environments", type=Path, help="a folder of environments by target")
    parser.add_argument("--add", action="store_true", help="keep what the page says of other backends")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "emulators.md")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, tokens = _first_layers(options.layers, options.length)
    hidden, logits = TorchOriginal(source).hidden_and_logits(torch.from_numpy(tokens[None]))
    assert logits is not None
    rows: list[Row] = []
    for lowering in options.lowerings:
        compiled = compile_model(source.module, block_size=options.block_size, lowering=lowering)
        for name in options.backends:
            with tempfile.TemporaryDirectory() as scratch:
                bundle = write_bundle(compiled, Path(scratch) / "bundle")
                opened = _open(bundle, name, options.environments)
                row = _row(opened, name, lowering, options.layers, tokens, (hidden.numpy(), logits.numpy()))
            logger.info("%s", row)
            rows.append(row)
    earlier = options.out.read_text(encoding="utf-8") if options.add else ""
    options.out.write_text(page(rows, earlier), encoding="utf-8")
    return 0


def _first_layers(layers: int, length: int) -> tuple[LoadedSource, npt.NDArray[np.int64]]:
    """SmolLM2 without its later layers, and ``length`` tokens of text."""
    path = model_path("smollm2", ROOT / ".cache" / "models")
    if path is None:
        raise SystemExit("fetch the model first: python -m tools.fetch_models smollm2")
    whole = load_source(path)
    assert whole.tokenizer_json is not None
    ids = Tokenizer.from_buffer(whole.tokenizer_json).encode(TEXT.read_text(encoding="utf-8")).ids[:length]
    model: Any = whole.module
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return load_source(model), np.array(ids, np.int64)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A bundle that is ready to run, what compiled it, and how many nodes that leaves to the host."""

    bundle: LoadedBundle
    compiler: str
    off: int


def _open(bundle: Path, name: str, environments: Path | None) -> _Opened:
    if name in PROCESSORS:
        loaded = load(bundle, backend="openvino", precision=PROCESSORS[name], threads=2)
        return _Opened(loaded, f"openvino {version('openvino')}", 0)
    target = EMULATORS[name].target
    python = None if environments is None else environments / target / "bin" / "python"
    python = python if python is not None and python.exists() else None
    # The simulator of RKNN runs what a checked build keeps.
    entry = build_target(bundle, target, python=python, check=name == "rknn-simulator").entry
    return _Opened(
        load(bundle, backend=EmulatorBackend(name, threads=2, python=python), threads=2),
        f"{entry.compiler} {entry.version.partition('-')[0]}",
        sum(len(artifact.off) for artifact in entry.artifacts.values()),
    )


def _row(opened: _Opened, name: str, lowering: str, layers: int, tokens: Array, want: tuple[Array, Array]) -> Row:
    hidden = opened.bundle.run(tokens, output="hidden")
    logits = opened.bundle.run(tokens, output="logits")
    found = np.asarray(logits.array)
    return Row(
        name,
        opened.compiler,
        lowering,
        layers,
        len(tokens),
        opened.bundle.program.block_size,
        logits.report.engine_calls,
        opened.off,
        _error(np.asarray(hidden.array), want[0]),
        _error(found, want[1]),
        float((found.argmax(-1) == want[1].argmax(-1)).mean()),
    )


def _error(found: Array, want: Array) -> float:
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


PAGE = Template("""# Whole runs on emulators

SmolLM2-135M, whole (30 layers) or cut to its first layers, beside the original model in float32 with torch on the same
text. For an NPU it is built in half precision and run with every engine call in the vendor's emulator; OpenVINO's CPU
plugin runs the engines in float32 or bf16 (`run --backend`). Errors are the norm of the difference as a share of the
norm, over all positions; *off it* are nodes that the compiler leaves to the host's processor. Written by
`python -m tools.emulators`.

$machine

| backend | compiler | attention | layers | tokens, block | calls | off it | hidden error | logits error | same best |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|
""")


def page(rows: list[Row], earlier: str = "") -> str:
    """The page's text, with what the page ``earlier`` says of backends that ``rows`` do not measure."""
    measured = {row.backend for row in rows}
    table = [line for line in earlier.splitlines(keepends=True) if line.startswith("| ")][1:]
    kept = [line for line in table if line.split("|")[1].strip() not in measured]
    lines = [*kept, *map(_line, rows)]
    return PAGE.substitute(machine=machine_line(machine(("onnxruntime", "torch")))) + "".join(lines)


def _line(row: Row) -> str:
    cells = (
        row.backend,
        row.compiler,
        row.lowering,
        str(row.layers),
        f"{row.length}, {row.block_size}",
        str(row.calls),
        str(row.off or "none"),
        f"{row.hidden_error:.1e}",
        f"{row.logits_error:.1e}",
        f"{row.same_best_token:.1%}",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    raise SystemExit(main())
