"""Read a bundle's manifest and program, and refuse it before anything runs if a single byte is not as written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from twoheads.graphs.errors import BundleError, CompileError, InputError
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.head_columns import head_columns
from twoheads.graphs.serialization.bundle_format import (
    ENGINES,
    FORMAT_VERSION,
    GENERATION,
    MANIFEST,
    PARTIAL,
    PROGRAM,
    SIGNATURE,
    TARGETS,
    TOKENIZER,
    WEIGHT_HASHES,
    WEIGHTS,
    Manifest,
    tiles_folder,
)
from twoheads.graphs.serialization.json_codec import FormatError, from_json
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.graphs.variants.choose import FusedPrograms, fused_programs
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.graphs.variants.one_block import ONE_BLOCK
from twoheads.graphs.variants.steps import STEP
from twoheads.runtime.bundle.engine_files.check_engine_file import engine_problem
from twoheads.runtime.bundle.engine_files.declared import declared_engines
from twoheads.runtime.bundle.inside import RECOMPILE, UNTRUSTED, inside
from twoheads.runtime.bundle.pack import check_around
from twoheads.runtime.bundle.program_check import check_program
from twoheads.runtime.bundle.signature import check_signature, required_key
from twoheads.runtime.bundle.weights import Weights, part_name

__all__ = ["CHECKS", "Bundle", "read_bundle", "require_bundle"]

CHECKS = ("read", "full", "size")
"""How thoroughly a bundle may be checked."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that passed its checks.

    Attributes:
        path: Its folder.
        manifest: Its table of contents.
        program: What is run.
        identity: The hex sha256 of the manifest, and with it of everything.
        weight_hashes: By name, of the weights that are to be checked when they are read; ``None`` for none of them.
    """

    path: Path
    manifest: Manifest
    program: Program
    identity: str
    weight_hashes: Mapping[str, str] | None = None

    def file(self, name: str) -> Path:
        """The path of the file that the manifest calls ``name``, to be opened.

        Raises:
            BundleError: The manifest lists no such file, it is gone, or a link leads out of the bundle.
        """
        if not self.has(name):
            raise BundleError(str(self.path / MANIFEST), f"does not list {name!r}", UNTRUSTED)
        return inside(self.path, RelativePath(name))

    def has(self, name: str) -> bool:
        """Whether the manifest lists ``name``."""
        return name in self.manifest.files

    @property
    def extends(self) -> bool:
        """Whether it holds engines that extend a sequence."""
        return any(name.startswith(f"{ENGINES}/{STEP}") for name in self.manifest.files)

    @property
    def fused(self) -> FusedPrograms:
        """What a single input runs, as far as the bundle holds the engines."""
        short = self.has(self.engine_file(ONE_BLOCK))
        return fused_programs(self.program, self.manifest.lowering, short=short)

    @property
    def columns(self) -> Program | None:
        """The program with its head in pieces of columns, if the bundle holds the engine for it."""
        found = head_columns(self.program)
        held = found is not None and all(self.has(self.engine_file(stage.engine)) for stage in found.head)
        return found if held else None

    @property
    def weights_file(self) -> Path:
        """The file that holds every weight; not there where the program has none."""
        return self.file(WEIGHTS) if self.has(WEIGHTS) else self.path / WEIGHTS

    def open_weights(self) -> Weights:
        """Every weight, mapped; what was not checked yet is checked when it is read first."""
        return Weights(self.weights_file, self.manifest.weights, self.weight_hashes)

    @property
    def tokenizer_file(self) -> Path | None:
        """The tokenizer's file, if the bundle has one."""
        return self.file(TOKENIZER) if self.has(TOKENIZER) else None

    @property
    def generation_file(self) -> Path | None:
        """What the model says about generating, if the bundle has it."""
        return self.file(GENERATION) if self.has(GENERATION) else None

    def engine_file(self, engine: str, variant: str = "") -> str:
        """The manifest's name of an engine's file; of a variant, the one for the program's key tiles."""
        if not variant:
            return f"{ENGINES}/{engine}.onnx"
        width = self.program.key_tile
        return f"{ENGINES if width == self.manifest.key_tile else tiles_folder(width)}/{engine}.{variant}.onnx"

    def with_key_tile(self, width: int) -> Bundle:
        """The same bundle, run with key tiles of ``width`` tokens.

        Raises:
            InputError: It does not offer that width.
        """
        if width not in self.manifest.key_tiles:
            offered = ", ".join(map(str, self.manifest.key_tiles))
            fix = f"choose one of these, or compile the model with --key-tile {width}"
            raise InputError("key_tile", f"is {width}, and {self.path} offers {offered}", fix)
        return replace(self, program=with_key_tile(self.program, width))


def read_bundle(
    path: str | os.PathLike[str],
    *,
    check: str = "full",
    engines: bool = True,
    require_signature: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Reads and checks the bundle in folder ``path``.

    Args:
        path: The folder.
        check: ``full`` compares size and sha256 of every file with the manifest, and that of a pack with the pack's
            table of contents. ``read`` does so with all files but the weights', of which each is compared when
            :meth:`Bundle.open_weights` gives it out first; so opening a large bundle does not read it. ``size``
            compares sizes only.
        engines: Whether engine files are checked against the program, too; whoever opens none saves the time.
        require_signature: An ed25519 public key that must have signed the bundle, which is then checked in full;
            within :func:`~twoheads.runtime.bundle.signature.signature_required`, that one if not given.

    Raises:
        BundleError: Not a bundle, of another format version, or a file is missing, extra, truncated, altered or
            outside the folder, or an engine is none of ours; names the file and what to do.
        InputError: ``check`` is neither, or there is no such key.
    """
    if check not in CHECKS:
        raise InputError("check", f"is {check!r}", f"say one of {', '.join(CHECKS)}")
    folder = Path(path)
    require_bundle(folder)
    content = _content(folder, MANIFEST)
    key = require_signature or required_key()
    if key is not None:
        check_signature(folder, content, key)
        check = "full"
    manifest = _parse_manifest(folder / MANIFEST, content)
    files = _check_files(folder, manifest)
    if manifest.packed_for is not None and check != "size":
        check_around(folder, manifest)
    hashes: Mapping[str, str] | None = None
    if check == "read" and WEIGHT_HASHES in files:
        _check_contents(files, manifest, (WEIGHT_HASHES,))
        hashes = _weight_hashes(files[WEIGHT_HASHES], manifest)
    with ThreadPoolExecutor(1) as beside:  # hashing the weights takes longer than all the rest, and no Python
        whole = check != "size" and hashes is None
        weights = beside.submit(_check_contents, files, manifest, (WEIGHTS,)) if whole else None
        if check != "size":
            _check_contents(files, manifest, files.keys() - {WEIGHTS})
        program = _read_json(Program, folder / PROGRAM, _parse(folder / PROGRAM, _content(folder, PROGRAM)))
        check_program(program, manifest, str(folder / PROGRAM))
        if engines:
            _check_engines(files, program, manifest, hashes)
        if weights is not None:
            weights.result()
    return Bundle(folder, manifest, program, hashlib.sha256(content).hexdigest(), hashes)


def require_bundle(folder: Path) -> None:
    """Refuses what does not look like a bundle, for who has other things to check before one is read.

    Raises:
        BundleError: There is no such folder, or no manifest in it.
    """
    if not folder.exists():
        raise BundleError(str(folder), "does not exist", "name the folder that `twoheads compile` wrote")
    if not folder.is_dir():
        fix = "name the folder that `twoheads compile` wrote"
        if folder.suffix in (".gguf", ".onnx"):
            fix = f"this is a model; compile it first: twoheads compile {folder} -o BUNDLE"
        elif (folder.parent / MANIFEST).is_file():
            fix = f"name the folder it lies in: {folder.parent}"
        raise BundleError(str(folder), "is a file, and a bundle is a folder", fix)
    if folder.name.startswith(".") and f".{PARTIAL}-" in folder.name:
        raise BundleError(str(folder), "is what an interrupted compile left", RECOMPILE)
    if not os.path.lexists(folder / MANIFEST):
        fix = "name the folder that `twoheads compile` wrote"
        if (folder / "config.json").exists():
            fix = f"this is a model; compile it first: twoheads compile {folder} -o BUNDLE"
        raise BundleError(str(folder), f"is not a bundle: it has no {MANIFEST}", fix)


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    data = _parse(path, content)
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise BundleError(
            str(path),
            f"has format version {version}, and this runtime reads version {FORMAT_VERSION}",
            "update twoheads" if version > FORMAT_VERSION else "compile the model again with this twoheads",
        )
    return _read_json(Manifest, path, data)


def _content(folder: Path, name: RelativePath) -> bytes:
    return _read(inside(folder, name))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", RECOMPILE) from error


def _parse(path: Path, content: bytes) -> Any:
    return parse_json(content, str(path), fix=RECOMPILE, error=BundleError)


def _read_json(cls: type[T], path: Path, data: Any) -> T:
    try:
        return from_json(cls, data)
    except (FormatError, CompileError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(str(path), f"does not describe a {cls.__name__.lower()}: {error}", RECOMPILE) from error


def _check_files(folder: Path, manifest: Manifest) -> dict[RelativePath, Path]:
    """Every listed file, inside the folder and as large as listed; nothing else is there."""
    for name in (PROGRAM, *_artifacts(manifest)):
        if name not in manifest.files:
            raise BundleError(str(folder / MANIFEST), f"does not list {name!r} among its files", UNTRUSTED)
    paths = {name: inside(folder, name) for name in manifest.files}
    _check_extra(folder, manifest)
    for name, entry in manifest.files.items():
        size = paths[name].stat().st_size
        if size != entry.size:
            word = "truncated" if size < entry.size else "altered"
            raise BundleError(str(paths[name]), f"is {word}: {size} bytes, the manifest says {entry.size}", RECOMPILE)
    return paths


def _check_contents(paths: Mapping[RelativePath, Path], manifest: Manifest, names: Iterable[RelativePath]) -> None:
    """The files ``names``, as far as there are such, have the sha256 that the manifest says."""
    for name in sorted(paths.keys() & set(names)):
        if _sha256(paths[name]) != manifest.files[name].sha256:
            raise BundleError(str(paths[name]), "is altered: its sha256 is not the manifest's", RECOMPILE)


def _weight_hashes(path: Path, manifest: Manifest) -> dict[str, str]:
    """The sha256 of every weight that the bundle holds, or of each of its parts.

    Raises:
        BundleError: The file says something else.
    """
    found = _parse(path, _read(path))
    entries = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    expected = [
        part
        for name, weight in manifest.weights.items()
        for part in ([name] if name in entries else [part_name(name, at) for at in range(*weight.shape[:1])])
    ]
    if (
        len(expected) != len(entries)
        or entries.keys() != set(expected)
        or not all(isinstance(value, str) for value in entries.values())
    ):
        raise BundleError(str(path), "does not list the sha256 of each weight", UNTRUSTED)
    return entries


def _check_engines(
    paths: Mapping[RelativePath, Path], program: Program, manifest: Manifest, hashes: Mapping[str, str] | None
) -> None:
    """Every ONNX file below ``engines/`` is such as our emitters write, and says what the program says.

    Those that extend a sequence are checked when they are opened: they take longer than all others.
    """
    engines = {name: path for name, path in paths.items() if name.startswith(f"{ENGINES}/") and name.endswith(".onnx")}
    if not engines:  # a pack: its artifacts take their place, and it may hold no weights
        return
    if WEIGHTS not in paths:
        raise BundleError(WEIGHTS, "is not listed in the manifest, and engines are", RECOMPILE)
    declared = declared_engines(program, manifest, Weights(paths[WEIGHTS], manifest.weights, hashes).view)
    for name, path in engines.items():
        if name.startswith(f"{ENGINES}/{STEP}") and name not in declared:
            continue
        problem = engine_problem(_read(path), declared.get(name))
        if problem is not None:
            raise BundleError(str(path), problem, UNTRUSTED)


def _artifacts(manifest: Manifest) -> Iterator[str]:
    """Every file that was built for some accelerator."""
    for target, entry in manifest.targets.items():
        for artifact in entry.artifacts.values():
            hosts = () if artifact.host is None else (artifact.host.file,)
            yield from (f"{TARGETS}/{target}/{file}" for file in (*artifact.files, *hosts))


def _check_extra(folder: Path, manifest: Manifest) -> None:
    for base, folders, files in os.walk(folder):
        for entry in (*files, *(name for name in folders if Path(base, name).is_symlink())):
            name = Path(base, entry).relative_to(folder).as_posix()
            if name not in manifest.files and name not in (MANIFEST, SIGNATURE):
                raise BundleError(
                    str(folder / name), "is not listed in the manifest", "remove it, or compile the model again"
                )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", RECOMPILE) from error
