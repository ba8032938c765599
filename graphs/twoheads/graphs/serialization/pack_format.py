"""The table of contents of a pack: the folder that goes to a device.

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
import json
from dataclasses import dataclass

from twoheads.graphs.serialization.bundle_format import FileEntry
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.relative_path import RelativePath

__all__ = ["BUNDLE", "CANARY", "PACK", "PACK_VERSION", "SEAL", "Canary", "Pack", "is_sealed", "sealed"]

PACK_VERSION = 1
PACK, CANARY, BUNDLE = "pack.json", "canary.npz", "bundle"
SEAL = "seal"
"""The sha256 of ``pack.json`` without it, so that a byte that is another there shows, too."""


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


def sealed(pack: Pack) -> bytes:
    """The content of ``pack.json``."""
    data = dict(to_json(pack)) | {SEAL: ""}
    content = (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    empty = f'"{SEAL}": ""'.encode()
    return content.replace(empty, f'"{SEAL}": "{_digest(content)}"'.encode())


def is_sealed(content: bytes, seal: object) -> bool:
    """Whether ``content`` is what was sealed: with nothing in the place of the seal it has that sha256."""
    return isinstance(seal, str) and _digest(content.replace(seal.encode(), b"", 1)) == seal


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
