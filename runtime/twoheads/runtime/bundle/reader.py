"""Read a bundle's manifest and program, and refuse it before anything runs if a single byte is not as written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from twoheads.graphs.errors import BundleError, CompileError, InputError
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import (
    ENGINES,
    FORMAT_VERSION,
    MANIFEST,
    PARTIAL,
    PROGRAM,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    tiles_folder,
)
from twoheads.graphs.serialization.json_codec import FormatError, from_json
from twoheads.graphs.variants.choose import FusedPrograms, fused_programs
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.graphs.variants.one_block import ONE_BLOCK
from twoheads.runtime.bundle.program_check import check_program

__all__ = ["Bundle", "read_bundle"]

RECOMPILE = "compile the model again with `twoheads compile`, or copy the bundle again from where it is whole"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that passed its checks: its folder, its table of contents and its program."""

    path: Path
    manifest: Manifest
    program: Program

    def file(self, name: str) -> Path:
        """The path of the file that the manifest calls ``name``."""
        return self.path.joinpath(*PurePosixPath(name).parts)

    def has(self, name: str) -> bool:
        """Whether the manifest lists ``name``."""
        return name in self.manifest.files

    @property
    def fused(self) -> FusedPrograms:
        """What a single input runs, as far as the bundle holds the engines."""
        short = self.has(self.engine_file(ONE_BLOCK))
        return fused_programs(self.program, self.manifest.lowering, short=short)

    @property
    def weights_file(self) -> Path:
        """The file that holds every weight."""
        return self.file(WEIGHTS)

    @property
    def tokenizer_file(self) -> Path | None:
        """The tokenizer's file, if the bundle has one."""
        return self.file(TOKENIZER) if self.has(TOKENIZER) else None

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


def read_bundle(path: str | os.PathLike[str], *, check: str = "full") -> Bundle:
    """Reads and checks the bundle in folder ``path``.

    Args:
        path: The folder.
        check: ``full`` compares size and sha256 of every file with the manifest; ``size`` only the sizes.

    Raises:
        BundleError: Not a bundle, of another format version, or a file is missing, extra, truncated, altered or
            outside the folder; names the file and what to do.
        InputError: ``check`` is neither.
    """
    if check not in ("full", "size"):
        raise InputError("check", f"is {check!r}", "say full (sizes and sha256) or size")
    folder = Path(path)
    manifest = _read_manifest(folder)
    _check_files(folder, manifest, check)
    program = _read_json(Program, folder / PROGRAM, _parse(folder / PROGRAM))
    bundle = Bundle(folder, manifest, program)
    check_program(program, manifest, str(folder / PROGRAM))
    return bundle


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.exists():
        raise BundleError(str(folder), "does not exist", "name the folder that `twoheads compile` wrote")
    if not folder.is_dir():
        raise BundleError(str(folder), "is a file, and a bundle is a folder", "name the folder it lies in")
    if folder.name.startswith(".") and f".{PARTIAL}-" in folder.name:
        raise BundleError(str(folder), "is what an interrupted compile left", RECOMPILE)
    if not path.is_file():
        fix = "name the folder that `twoheads compile` wrote"
        if (folder / "config.json").exists():
            fix = f"this is a model; compile it first: twoheads compile {folder} -o BUNDLE"
        raise BundleError(str(folder), f"is not a bundle: it has no {MANIFEST}", fix)
    data = _parse(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise BundleError(
            str(path),
            f"has format version {version}, and this runtime reads version {FORMAT_VERSION}",
            "update twoheads" if version > FORMAT_VERSION else "compile the model again with this twoheads",
        )
    return _read_json(Manifest, path, data)


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", RECOMPILE) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(str(path), f"is not JSON ({error})", RECOMPILE) from error


def _read_json(cls: type[T], path: Path, data: Any) -> T:
    try:
        return from_json(cls, data)
    except (FormatError, CompileError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(str(path), f"does not describe a {cls.__name__.lower()}: {error}", RECOMPILE) from error


def _check_files(folder: Path, manifest: Manifest, check: str) -> None:
    """Every listed file is inside the folder and as listed, and nothing else is there."""
    for name in manifest.files:
        _check_name(folder, name)
    if PROGRAM not in manifest.files:
        raise BundleError(str(folder / MANIFEST), f"does not list {PROGRAM}", RECOMPILE)
    _check_extra(folder, manifest)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(str(path), "is missing from the bundle", RECOMPILE)
        size = path.stat().st_size
        if size != entry.size:
            word = "truncated" if size < entry.size else "altered"
            raise BundleError(str(path), f"is {word}: {size} bytes, the manifest says {entry.size}", RECOMPILE)
        if check == "full" and _sha256(path) != entry.sha256:
            raise BundleError(str(path), "is altered: its sha256 is not the manifest's", RECOMPILE)


def _check_name(folder: Path, name: str) -> None:
    parts = name.split("/")
    if "\\" in name or ":" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(
            str(folder / MANIFEST),
            f"lists {name!r}, which is not a plain path below the bundle",
            "don't use a bundle from an untrusted source; compile the model again",
        )
    root = folder.resolve()
    if not (folder / name).resolve().is_relative_to(root):
        raise BundleError(
            str(folder / name),
            "is a link that leaves the bundle",
            "don't use a bundle from an untrusted source; compile the model again",
        )


def _check_extra(folder: Path, manifest: Manifest) -> None:
    for base, folders, files in os.walk(folder):
        for entry in (*files, *(name for name in folders if Path(base, name).is_symlink())):
            name = Path(base, entry).relative_to(folder).as_posix()
            if name not in manifest.files and name != MANIFEST:
                raise BundleError(
                    str(folder / name), "is not listed in the manifest", "remove it, or compile the model again"
                )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", RECOMPILE) from error
