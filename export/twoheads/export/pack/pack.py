"""A bundle that was built for a target into the folder, or the archive, that goes to the device."""

from __future__ import annotations

import gzip
import importlib.metadata
import platform
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.bundle.staging import partial_folder, write_error, written_folder
from twoheads.export.bundle.writer import file_entry
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.one_file.comparison import check_lengths, random_arguments
from twoheads.export.pack.canary import EXPECTED
from twoheads.export.pack.trimmed import write_trimmed
from twoheads.export.pack.wheel import write_wheel
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import TargetEntry
from twoheads.graphs.serialization.pack_format import BUNDLE, CANARY, PACK, PACK_VERSION, Canary, Pack, sealed
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime import load
from twoheads.runtime.backends.emulator import EMULATORS, backend_on_device, emulator_of
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["ARCHIVE", "Packed", "pack_bundle"]

ARCHIVE = ".tar.gz"

SLACK = 4.0
"""How much more than the measured error passes: another device of the same target rounds in other places."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: where, the table of contents, and bytes by part."""

    path: Path
    pack: Pack
    sizes: Mapping[str, int]


def pack_bundle(
    bundle: str | Path,
    target: str,
    out: str | Path,
    *,
    backend: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Packs what ``bundle`` holds for ``target`` into the folder or the archive ``out``.

    Args:
        bundle: A bundle for which ``twoheads build`` ran.
        target: The target's name.
        out: A folder to create, or a file that ends in ``.tar.gz``.
        backend: What runs the pack, by default the target's on its device; its emulator's for a pack that runs without.
        overwrite: Replace a pack that is there.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        InputError: The bundle was not built for that target, or nothing of ours, or not ``backend``, runs it.
        BundleError: The bundle is damaged, something else is at ``out``, or the disk refuses.
    """
    report = progress or silent
    source = read_bundle(bundle)
    runs = _backend(target, backend)
    entry = source.manifest.targets.get(RelativePath(target))
    if entry is None:
        raise InputError(str(bundle), f"was not built for {target}", f"twoheads build {bundle} --target {target}")
    path = Path(out)
    if not path.name.endswith(ARCHIVE):
        with written_folder(path, overwrite=overwrite, check_replaceable=_check_is_pack) as folder:
            pack = _write(source, target, runs, entry, folder, report)
        return Packed(path, pack, _sizes(pack))
    if path.exists() and not overwrite:
        raise InputError(str(path), "exists already", "name another place, or replace it with --force")
    try:
        with partial_folder(path) as scratch:
            folder = scratch / path.name.removesuffix(ARCHIVE)
            folder.mkdir()
            pack = _write(source, target, runs, entry, folder, report)
            report("compressing")
            archive = scratch / "archive"
            _compress(folder, archive)
            archive.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    return Packed(path, pack, _sizes(pack))


def _backend(target: str, asked: str | None) -> str:
    """The name of what will run the pack."""
    usual = backend_on_device(target)
    known = [name for name, one in EMULATORS.items() if one.target == target]
    if asked is not None and asked not in known:
        raise InputError(
            f"--backend {asked}", f"does not run what is built for {target}", f"use one of: {', '.join(known)}"
        )
    return asked or usual


def _write(source: Bundle, target: str, backend: str, entry: TargetEntry, folder: Path, report: Progress) -> Pack:
    report("copying what the device needs")
    write_trimmed(source, target, folder / BUNDLE, sources=EMULATORS[backend].checked)
    write_wheel(folder)
    report("running the canary")
    canary = _write_canary(source, folder, emulator_of(target), entry)
    emulator = EMULATORS[backend]
    pack = Pack(
        format_version=PACK_VERSION,
        twoheads=importlib.metadata.version("twoheads"),
        target=target,
        device=entry.device,
        precision=entry.precision,
        backend=backend,
        machine=platform.machine() if emulator.machine_code else None,
        packages=emulator.packages,
        canary=canary,
        files={},
    )
    (folder / "run").write_text(_run_script(pack), encoding="utf-8")
    (folder / "run").chmod(0o755)
    (folder / "README.md").write_text(_readme(pack, source.program), encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    pack = replace(pack, files={RelativePath(name): file_entry(path) for name, path in files.items()})
    (folder / PACK).write_bytes(sealed(pack))
    return pack


def _write_canary(source: Bundle, folder: Path, backend: str, entry: TargetEntry) -> Canary:
    """Runs a small input in float32 and, where they run here, on the artifacts."""
    program, limit = source.program, PRECISIONS[entry.precision].limit
    given = random_arguments(program, check_lengths(program)[-1])
    output = "last" if program.default_output == "logits" and not program.pooled_logits else program.default_output
    if output == "embedding":  # of random tokens it is a small mean, of which rounding is a large share
        output = "hidden"
    expected = _result(load(source.path, check="size").run(given, output=output).array)
    arrays: dict[str, Any] = {**given, EXPECTED: expected}
    np.savez(folder / CANARY, **arrays)
    # What a simulator runs in the place of artifacts may be left out of the pack.
    place = source.path if EMULATORS[backend].checked else folder / BUNDLE
    found = _on_artifacts(place, backend, entry, given, output)
    if found is None:
        return Canary(output, None, limit)
    error = relative_error(found, expected)
    if not error <= limit:
        problem = f"is off by {error:.1e} on what was built, more than {entry.precision} explains ({limit})"
        raise BundleError(str(source.path), problem, "build with --check and see which engine it is")
    return Canary(output, error, max(SLACK * error, PRECISIONS["fp32"].limit))


def _on_artifacts(
    place: Path, backend: str, entry: TargetEntry, given: Mapping[str, Array], output: str
) -> Array | None:
    """The result on the artifacts, or ``None`` where their runtime or their device is not here."""
    anywhere = EMULATORS[backend].anywhere
    if anywhere is not None and entry.device not in anywhere:
        return None
    try:
        return _result(load(place, backend=backend, check="size").run(given, output=output).array)
    except InputError as error:
        if error.where != f"backend {backend}":
            raise
        return None  # it is not installed


def _result(array: Array | None) -> Array:
    if array is None:
        raise InternalError("a run without a sink gave nothing")
    return array


def _run_script(pack: Pack) -> str:
    return f"""#!/bin/sh
# ./run --text FILE -o OUT.npz [--output ...]: see `twoheads run --help`.
here=$(dirname "$0")
exec twoheads run "$here/{BUNDLE}" --backend {pack.backend} "$@"
"""


def _readme(pack: Pack, program: Program) -> str:
    device = f" ({pack.device})" if pack.device else ""
    packages = " ".join(package if package.startswith("'") else f"'{package}'" for package in pack.packages)
    if EMULATORS[pack.backend].emulates:  # whose packages want other versions of ours: RKNN's an older NumPy
        packages = f"&& twoheads targets install {pack.target}"
    what = f"{program.name} for {pack.target}{device} in {pack.precision}, inputs of any length"
    return f"""{what}, in blocks of {program.block_size} tokens.
Install: python3 -m venv env && . env/bin/activate && pip install twoheads-*.whl tokenizers {packages}
Prove:   twoheads canary .
Run:     ./run --text FILE -o OUT.npz
The result is in OUT.npz; `twoheads run --help` tells the rest.
"""


def _check_is_pack(target: Path) -> None:
    """Raises unless ``target`` is a pack or an empty folder, which alone may be replaced."""
    entries = {entry.name for entry in target.iterdir()} if target.is_dir() else None
    if entries is None or (entries and PACK not in entries):
        raise BundleError(str(target), "is not a pack, so it is not overwritten", "name another place")


def _sizes(pack: Pack) -> dict[str, int]:
    """Bytes by part: artifacts, weights beside them, tokenizer, the rest."""
    parts: dict[str, Callable[[str], bool]] = {
        "artifacts": lambda name: name.startswith(f"{BUNDLE}/targets/"),
        "weights": lambda name: name.endswith("/weights.bin"),
        "tokenizer": lambda name: name.startswith(f"{BUNDLE}/tokenizer/"),
        "wheel": lambda name: name.endswith(".whl"),
    }
    sizes = {part: sum(e.size for n, e in pack.files.items() if holds(n)) for part, holds in parts.items()}
    return {**sizes, "other": sum(entry.size for entry in pack.files.values()) - sum(sizes.values())}


def _compress(folder: Path, archive: Path) -> None:
    """The folder as ``.tar.gz`` whose bytes depend on names and contents alone."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(folder.rglob("*")):
            tar.add(path, f"{folder.name}/{path.relative_to(folder).as_posix()}", recursive=False, filter=_plain)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry without owner and date."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.mode = 0o755 if info.isdir() or info.name.endswith("/run") else 0o644
    return info
