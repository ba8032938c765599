"""The folder that goes to a device, and its reader, which refuses it if a single byte is not as packed.

::

    PACK/
        pack.json       this module's Pack
        README.md       what to install and what to type
        run             runs a text or tokens: `twoheads run` on the bundle, with the target's backend
        canary.npz      a small input by the model's names, and `expected`, the result in float32
        bundle/         the bundle with what was built for one target, and without what that holds
        twoheads-*.whl  this project

Bytes depend on the bundle and on this project alone. What a user puts beside these (an environment, results) is theirs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.bundle_format import FileEntry
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.relative_path import RelativePath

__all__ = ["BUNDLE", "CANARY", "FORMAT_VERSION", "PACK", "Canary", "Pack", "read_pack", "write_pack"]

FORMAT_VERSION = 1
PACK, CANARY, BUNDLE = "pack.json", "canary.npz", "bundle"
SEAL = "seal"
"""The sha256 of ``pack.json`` without it, so that a byte that is another there shows, too."""

COPY_AGAIN = "copy the pack again from where it is whole, or pack again"


@dataclass(frozen=True, slots=True)
class Canary:
    """What a run of the small input should come to.

    Attributes:
        output: Which output it is.
        error: How far the artifacts were from ``expected`` where they were packed, as a share of the largest magnitude;
            ``None`` where nothing ran them there.
        limit: The largest error that passes.
    """

    output: str
    error: float | None
    limit: float


@dataclass(frozen=True, slots=True)
class Pack:
    """The table of contents.

    Attributes:
        format_version: Readers refuse any other than their own.
        twoheads: The version that packed, which is the oldest that runs it.
        target, device, precision: What it was built for.
        backend: What runs it: a name for ``twoheads run --backend``.
        machine: The processor's architecture for which artifacts are machine code; ``None`` where they are not.
        packages: What the backend needs, as pip takes it.
        canary: The proof.
        files: Every other file, by relative path.
    """

    format_version: int
    twoheads: str
    target: str
    device: str | None
    precision: str
    backend: str
    machine: str | None
    packages: tuple[str, ...]
    canary: Canary
    files: dict[RelativePath, FileEntry]


def write_pack(folder: Path, pack: Pack) -> None:
    """Writes the table of contents into ``folder``, sealed."""
    data = dict(to_json(pack)) | {SEAL: ""}
    content = (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    empty = f'"{SEAL}": ""'.encode()
    (folder / PACK).write_bytes(content.replace(empty, f'"{SEAL}": "{_digest(content)}"'.encode()))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_sealed(content: bytes, seal: object) -> bool:
    """Whether ``content`` is what was sealed: with nothing in the place of the seal it has that sha256."""
    return isinstance(seal, str) and _digest(content.replace(seal.encode(), b"", 1)) == seal


def read_pack(folder: Path) -> Pack:
    """Reads and checks the pack in ``folder``, its own sha256 and every file's.

    Raises:
        BundleError: It is no pack, damaged, of another format, for another machine, or for a newer twoheads.
    """
    path = folder / PACK
    if not path.is_file():
        fix = f"unpack it: tar xf {folder}" if folder.is_file() else "name the folder that `twoheads pack` wrote"
        raise BundleError(str(folder), f"is no pack: it has no {PACK}", fix)
    try:
        content = path.read_bytes()
        data = json.loads(content)
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            problem = f"has format version {version}, and this twoheads reads version {FORMAT_VERSION}"
            raise BundleError(str(path), problem, "install the wheel in the pack, or pack again")
        if isinstance(data, dict) and not _is_sealed(content, data.pop(SEAL, None)):
            raise BundleError(str(path), "is altered: its own sha256 is another", COPY_AGAIN)
        pack = from_json(Pack, data)
    except (OSError, ValueError, FormatError, RecursionError) as error:
        raise BundleError(str(path), f"does not describe a pack: {error}", COPY_AGAIN) from error
    _check_runtime(folder, pack)
    _check_files(folder, pack)
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


def _check_files(folder: Path, pack: Pack) -> None:
    for name, entry in pack.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(str(path), "is missing from the pack", COPY_AGAIN)
        if path.stat().st_size != entry.size:
            raise BundleError(str(path), f"has {path.stat().st_size} bytes, the pack says {entry.size}", COPY_AGAIN)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise BundleError(str(path), "is altered: its sha256 is not the pack's", COPY_AGAIN)
    # What lies beside the bundle and was not packed is the user's: an environment, results.
    for parent, _, names in os.walk(folder / BUNDLE):
        for file_name in names:
            relative = (Path(parent) / file_name).relative_to(folder).as_posix()
            if relative not in pack.files:
                raise BundleError(str(folder / relative), "is not listed in the pack", "remove it")
