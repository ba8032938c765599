"""Read a pack, and refuse it if a byte is not as packed, or if it is of another device or an older runtime."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.bundle_format import MANIFEST, Manifest
from twoheads.graphs.serialization.json_codec import FormatError, from_json
from twoheads.graphs.serialization.pack_format import BUNDLE, PACK, PACK_VERSION, SEAL, Pack, is_sealed
from twoheads.graphs.serialization.relative_path import RelativePath

__all__ = ["check_around", "read_pack"]

COPY_AGAIN = "copy the pack again from where it is whole, or pack again"


def read_pack(folder: Path) -> Pack:
    """Reads and checks the pack in ``folder``: its own sha256 and every file's.

    Raises:
        BundleError: It is no pack, damaged, of another format, for another machine, or for a newer twoheads.
    """
    pack = _read_table(folder)
    _check_files(folder, pack, pack.files)
    # What lies beside the bundle and was not packed is the user's: an environment, results.
    for parent, _, names in os.walk(folder / BUNDLE):
        for name in names:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if relative not in pack.files:
                raise BundleError(str(folder / relative), "is not listed in the pack", "remove it")
    return pack


def check_around(bundle: Path, manifest: Manifest) -> None:
    """Checks the pack that the folder ``bundle`` lies in, but for what that bundle's manifest itself lists.

    Raises:
        BundleError: It lies in no pack, the pack is refused, or it tells of another device than the manifest.
    """
    folder = bundle.resolve().parent
    if not (folder / PACK).is_file():
        problem = f"lies in no pack: there is no {PACK} beside it, which tells whether it is whole"
        raise BundleError(str(bundle), problem, COPY_AGAIN)
    pack = _read_table(folder)
    here = {RelativePath(f"{BUNDLE}/{name}") for name in manifest.files}
    _check_files(folder, pack, [name for name in pack.files if name not in here])
    if RelativePath(f"{BUNDLE}/{MANIFEST}") not in pack.files:
        raise BundleError(str(folder / PACK), f"does not list {BUNDLE}/{MANIFEST}", COPY_AGAIN)
    _check_device(folder, pack, manifest)


def _read_table(folder: Path) -> Pack:
    path = folder / PACK
    if not path.is_file():
        fix = "name the folder that `twoheads pack` wrote"
        if folder.is_file() and tarfile.is_tarfile(folder):
            fix = f"unpack it: tar xf {folder}, and name the folder"
        problem = f"is no pack: it has no {PACK}" if folder.exists() else "does not exist"
        raise BundleError(str(folder), problem, fix)
    try:
        content = path.read_bytes()
        data = json.loads(content)
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != PACK_VERSION:
            problem = f"has format version {version}, and this twoheads reads version {PACK_VERSION}"
            raise BundleError(str(path), problem, "install the wheel in the pack, or pack again")
        if isinstance(data, dict) and not is_sealed(content, data.pop(SEAL, None)):
            raise BundleError(str(path), "is altered: its own sha256 is another", COPY_AGAIN)
        pack = from_json(Pack, data)
    except (OSError, ValueError, FormatError, RecursionError) as error:
        raise BundleError(str(path), f"does not describe a pack: {error}", COPY_AGAIN) from error
    _check_runtime(folder, pack)
    return pack


def _check_runtime(folder: Path, pack: Pack) -> None:
    here = importlib.metadata.version("twoheads")
    if _release(here) < _release(pack.twoheads):
        problem = f"was packed by twoheads {pack.twoheads}, and this is the older {here}"
        raise BundleError(str(folder), problem, f"pip install {folder}/twoheads-*.whl")
    if pack.machine not in (None, platform.machine()):
        problem = f"holds machine code for {pack.machine}, and this processor is {platform.machine()}"
        raise BundleError(str(folder), problem, "build and pack on a machine of that kind")


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version up to what is no number."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _check_files(folder: Path, pack: Pack, names: Iterable[RelativePath]) -> None:
    for name in names:
        path, entry = folder / name, pack.files[name]
        if path.is_symlink() or not path.is_file():
            raise BundleError(str(path), "is missing from the pack", COPY_AGAIN)
        if path.stat().st_size != entry.size:
            raise BundleError(str(path), f"has {path.stat().st_size} bytes, the pack says {entry.size}", COPY_AGAIN)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise BundleError(str(path), "is altered: its sha256 is not the pack's", COPY_AGAIN)


def _check_device(folder: Path, pack: Pack, manifest: Manifest) -> None:
    """Refuses a table of contents that tells of something else than what the bundle holds."""
    entry = None if manifest.packed_for is None else manifest.targets.get(RelativePath(manifest.packed_for))
    if entry is None or manifest.packed_for != pack.target:
        problem = f"says that it is for {pack.target}, and its bundle was packed for {manifest.packed_for}"
        raise BundleError(str(folder / PACK), problem, COPY_AGAIN)
    told, built = ((one.device or "any device", one.precision) for one in (pack, entry))
    if told != built:
        problem = f"says {' in '.join(told)}, and its artifacts were built for {' in '.join(built)}"
        raise BundleError(str(folder / PACK), problem, COPY_AGAIN)
