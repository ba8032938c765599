"""Programs of GGUF files that were planned before, among the user's caches: torch alone takes seconds to load.

A program is kept under a digest of all that it is made of: the file's header, the options, and the code that makes it,
ours and the libraries'. In front of it stands its own sha256. What can't be read or written there, or is damaged, is as
good as none: the program is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import twoheads.compiler
import twoheads.graphs
from twoheads.compiler.frontend.torch.weights.gguf_header import gguf_config_digest
from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.graphs.user_cache import user_cache
from twoheads.runtime.memory.new_file import replacing

__all__ = ["keep_plan", "kept_plan", "plan_file"]

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "gguf", "numpy")
"""What takes part in making a program of a GGUF file."""

MOST = 32
"""Plans that are kept; the oldest go."""


def plan_file(source: Path, options: Mapping[str, object]) -> Path | None:
    """Where the program of ``source`` is kept.

    ``None`` for what is no GGUF file, for one that can't be read (who makes a plan of it says why), where a library is
    missing, and for a user without a home.
    """
    cache = user_cache()
    if cache is None or source.suffix != ".gguf" or not source.is_file():
        return None
    try:
        digest = gguf_config_digest(source)
        made_of = [source.stem, digest, dict(options), {name: version(name) for name in LIBRARIES}, _own_code()]
    except (OSError, ValueError, KeyError, struct.error, PackageNotFoundError):
        return None
    return cache / "plans" / f"{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()}.plan"


def kept_plan(path: Path | None) -> Program | None:
    """What was kept there, if anything."""
    if path is None or not path.exists():
        return None
    try:
        told, _, content = path.read_bytes().partition(b"\n")
        if told == _digest(content):
            return from_json(Program, parse_json(content, str(path)))
        logger.info("%s: is damaged, so the plan is made anew", path)
    except (OSError, TwoheadsError, FormatError) as error:
        logger.info("%s: can't be read, so the plan is made anew: %s", path, error)
    return None


def keep_plan(path: Path | None, program: Program) -> None:
    """Keeps ``program`` there, and drops the oldest of many."""
    if path is None:
        return
    content = json.dumps(to_json(program)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(_digest(content) + b"\n" + content)
    except (OSError, TwoheadsError) as error:
        logger.info("%s: can't be written (%s)", path, error)
        return
    with contextlib.suppress(OSError):  # another process may drop the same
        held = sorted(path.parent.glob("*.plan"), key=lambda file: file.stat().st_mtime_ns)
        for old in held[:-MOST]:
            old.unlink()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _own_code() -> str:
    """What tells one state of our compiler from the next, also while it is being changed: sizes and times of files."""
    found = hashlib.sha256()
    for package in (twoheads.compiler, twoheads.graphs):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                status = path.stat()
                found.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()
