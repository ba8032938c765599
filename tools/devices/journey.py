"""One target's journey: compile, build, pack, a bare environment, canary, run, and the result beside the original."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.devices.original import Original
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.accelerators.build import Built, build_target
from twoheads.export.accelerators.loss import MOST
from twoheads.export.accelerators.target import load_target
from twoheads.export.pack.pack import pack_bundle
from twoheads.export.pack.wheel import write_wheel
from twoheads.graphs.serialization.bundle_format import TargetEntry
from twoheads.graphs.serialization.pack_format import Pack
from twoheads.runtime.backends.emulator import EMULATORS

__all__ = ["PLAIN", "Row", "runnable", "travel"]

logger = logging.getLogger(__name__)

PLAIN = "none"
"""No target: the bundle itself, whose engines ONNX Runtime opens as they are."""

STAND_INS = {"rknn": "rknn-simulator"}
"""What runs a target's pack where its own backend can't be installed."""

NOWHERE_HERE = ("coreml", "tensorrt", "tensorrt-rtx")
"""Targets whose runtimes are of another system, or of a GPU."""

EMULATED = ("qnn", "rknn-simulator")
"""Backends that compute as another chip would; on x86 the package of the first is an emulator."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a journey.

    Attributes:
        target: Its name, or :data:`PLAIN`.
        model: Which one.
        backend, device, precision: What ran it.
        compiler: Name and version.
        packages: What the bare environment had beside the project's own requirements, with versions.
        tokens, block_size: Of the run.
        lowering: Of attention.
        pack_bytes: Of the folder that was copied.
        canary_error, canary_limit: The proof's distance and what passes; ``None`` for a bundle, which has no canary.
        output: What was compared with the original.
        error: Norm of the difference from the original in float32, as a share of its norm.
        same_best: The share of positions with the same best token; ``None`` without logits.
        calls: Engine calls.
        seconds: Of the run, engines open.
        off: Nodes that the compiler's report leaves to the host.
        host_parts: Nodes that are cut off the engines for the host.
        emulated: Whether an emulator computed, whose time is not the device's.
        refused: What it costs where ``build`` refuses it for that, and it was taken with ``--allow-loss``.
    """

    target: str
    model: str
    backend: str
    device: str | None
    precision: str
    compiler: str
    packages: tuple[str, ...]
    tokens: int
    block_size: int
    lowering: str
    pack_bytes: int
    canary_error: float | None
    canary_limit: float | None
    output: str
    error: float
    same_best: float | None
    calls: int
    seconds: float
    off: int
    host_parts: int
    emulated: bool
    refused: float | None


def travel(original: Original, target: str, block_size: int, calibration: str) -> Row:
    """Goes all the way. What is written is gone afterwards, the bare environment too.

    Args:
        original: The model, its tokens and what it makes of them.
        target: A target that something of ours runs, or :data:`PLAIN`.
        block_size: Tokens of a block.
        calibration: A text, for targets of int8.

    Raises:
        TwoheadsError: It can't be built or packed.
        RuntimeError: A command on the bare side failed; names it and what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if target == PLAIN:
            return _bare_bundle(original, block_size, folder)
        lowering = load_target(target).lowering
        bundle = write_bundle(compile_model(original.path, block_size=block_size, lowering=lowering), folder / "bundle")
        logger.info("%s, %s: building", original.name, target)
        precision = load_target(target).precisions[0]
        built = build_target(
            bundle,
            target,
            calibrate=calibration if precision == "int8" else None,
            check=target == "rknn",  # whose simulator runs what a checked build keeps
            allow_loss=True,
        )
        packed = pack_bundle(bundle, target, folder / "pack", backend=STAND_INS.get(target))
        place = folder / "device"
        shutil.copytree(packed.path, place)  # what a copy to a device does
        shutil.rmtree(packed.path)
        parts = _host_nodes(bundle, target, built.entry)
        shutil.rmtree(bundle)
        return _on_the_device(original, packed.pack, built, place, block_size, lowering, parts)


def _on_the_device(
    original: Original, pack: Pack, built: Built, place: Path, block_size: int, lowering: str, parts: int
) -> Row:
    size, entry = _bytes(place), built.entry
    environment = _install(_install_line(place), place)
    logger.info("%s, %s: canary", original.name, pack.target)
    canary = _told(["twoheads", "canary", ".", "--json"], place, environment)
    found, report = _run(original, ["./run"], place, environment)
    return Row(
        target=pack.target,
        backend=pack.backend,
        device=pack.device,
        precision=pack.precision,
        compiler=f"{entry.compiler} {entry.version.partition('-')[0]}",
        packages=_versions(pack.packages, place, environment, pack.target),
        block_size=block_size,
        lowering=lowering,
        pack_bytes=size,
        canary_error=canary["error"],
        canary_limit=canary["limit"],
        off=sum(len(artifact.off) for artifact in entry.artifacts.values()),
        host_parts=parts,
        emulated=pack.backend in EMULATED,
        refused=None if built.loss is None or built.loss.share <= MOST else built.loss.share,
        **_of_the_run(original, found, report),
    )


def _bare_bundle(original: Original, block_size: int, folder: Path) -> Row:
    place = folder / "device"
    place.mkdir()
    write_bundle(compile_model(original.path, block_size=block_size), place / "bundle")
    write_wheel(place)
    size = _bytes(place)
    line = "python3 -m venv env && . env/bin/activate && pip install twoheads-*.whl"
    environment = _install(line, place)
    found, report = _run(original, ["twoheads", "run", "bundle"], place, environment)
    (version,) = _versions(("onnxruntime",), place, environment, PLAIN)
    return Row(
        target=PLAIN,
        backend="onnxruntime",
        device=None,
        precision="fp32",
        compiler=version,
        packages=(version,),
        block_size=block_size,
        lowering="tile",
        pack_bytes=size,
        canary_error=None,
        canary_limit=None,
        off=0,
        host_parts=0,
        emulated=False,
        refused=None,
        **_of_the_run(original, found, report),
    )


def _of_the_run(original: Original, found: Any, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of the run itself."""
    error, same = original.compare(found)
    return {
        "model": original.name,
        "tokens": len(original.tokens),
        "output": original.output,
        "error": error,
        "same_best": same,
        "calls": report["engine_calls"],
        "seconds": report["seconds"],
    }


def _install_line(place: Path) -> str:
    """What the pack's README says to install, which is thereby tried."""
    lines = (place / "README.md").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("Install:"))


def _install(line: str, place: Path) -> dict[str, str]:
    """Runs the line of a README, and returns the variables under which commands find that environment and no other."""
    kept = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in kept}
    variables["XDG_CACHE_HOME"] = str(place.parent / "cache")  # where environments of vendors would be found
    _checked(["sh", "-ec", line], place, {**variables, **_pip_cache()})
    variables["PATH"] = f"{place / 'env' / 'bin'}{os.pathsep}{variables['PATH']}"
    return variables


def _pip_cache() -> Mapping[str, str]:
    """Pip's own, so that a package is fetched once."""
    return {"PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _run(original: Original, command: list[str], place: Path, environment: dict[str, str]) -> tuple[Any, Any]:
    np.save(place / "tokens.npy", original.tokens)
    words = ["--tokens", "tokens.npy", "-o", "out.npz", "--output", original.output, "--json"]
    logger.info("%s: running %s tokens by %s", original.name, len(original.tokens), " ".join(command))
    report = _told([*command, *words], place, environment)
    with np.load(place / "out.npz") as arrays:
        return arrays[original.output], report


def _told(command: list[str], place: Path, environment: dict[str, str]) -> Any:
    said = _checked(command, place, environment)
    return json.loads(said[said.index("{") :])  # Qualcomm's library writes a line of its own before


def _checked(command: list[str], place: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=place, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def _versions(packages: tuple[str, ...], place: Path, environment: Mapping[str, str], target: str) -> tuple[str, ...]:
    """What is installed of the packages, each as ``name version``, be it in the environment kept for the target."""
    kept = Path(environment["XDG_CACHE_HOME"], "twoheads", "environments", target, "bin", "python")
    python = str(kept) if kept.exists() else "python"
    told = json.loads(_checked([python, "-m", "pip", "list", "--format=json"], place, environment))
    found = {entry["name"].lower(): entry["version"] for entry in told}
    names = (package.strip("'").partition("<")[0] for package in packages)
    return tuple(f"{name} {found[name].partition('+')[0]}" for name in names if name in found)


def _host_nodes(bundle: Path, target: str, entry: TargetEntry) -> int:
    """Nodes of the parts that were cut off the engines."""
    files = {artifact.host.file for artifact in entry.artifacts.values() if artifact.host is not None}
    return sum(
        len(onnx.load(bundle / "targets" / target / file, load_external_data=False).graph.node) for file in files
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def runnable() -> tuple[str, ...]:
    """The targets whose artifacts something runs on this processor, be it an emulator."""
    here = [
        name
        for name, one in EMULATORS.items()
        if not one.weights_alone and (one.emulates or one.target not in NOWHERE_HERE)
    ]
    return tuple(dict.fromkeys(EMULATORS[name].target for name in here))
