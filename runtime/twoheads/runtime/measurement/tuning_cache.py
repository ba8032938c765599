"""What tuning found on this machine, kept beside the bundle as ``BUNDLE.tune.json``, or else among the user's caches.

Not in the bundle, whose files are all checked. A file that can't be read, or that is of another bundle, machine or
version, is as good as none: tuning measures again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.user_cache import user_cache
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.memory.new_file import replacing

__all__ = ["Tuning", "TuningKey", "keep_tuning", "kept_tuning"]

logger = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True, slots=True)
class TuningKey:
    """What a choice is valid for.

    Attributes:
        manifest: The sha256 of the bundle's manifest.
        machine: Processor, cores and memory in words.
        backend: What runs the engines, with its version.
        precision: In what it multiplies.
        threads: Workers of a run.
    """

    manifest: str
    machine: str
    backend: str
    precision: str
    threads: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """A choice: ``key_tile`` tokens, found by the effort ``level``."""

    key: TuningKey
    level: str
    key_tile: int


@dataclass(frozen=True, slots=True)
class _File:
    version: int
    tunings: tuple[Tuning, ...]


def kept_tuning(bundle: Bundle, key: TuningKey, level: str) -> Tuning | None:
    """What was found before for ``key``, by the effort ``level`` or by a greater one."""
    for path in _places(bundle, key):
        held = _read(path)
        for tuning in held:
            enough = tuning.level in (level, "full")
            if tuning.key == key and enough and tuning.key_tile in bundle.manifest.key_tiles:
                logger.info("%s: key tiles of %d tokens", path, tuning.key_tile)
                return tuning
        if held:
            logger.info("%s: is of another bundle, machine, backend or effort; measuring", path)
    return None


def keep_tuning(bundle: Bundle, tuning: Tuning) -> None:
    """Keeps what was found, in the first place that can be written; drops what was found of former bundles."""
    for path in _places(bundle, tuning.key):
        others = (held for held in _read(path) if held.key != tuning.key and held.key.manifest == tuning.key.manifest)
        text = json.dumps(to_json(_File(VERSION, (*others, tuning))), indent=1) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(text.encode())
        except (OSError, InputError) as error:
            logger.info("%s: can't be written (%s)", path, error)
        else:
            logger.info("%s: keeps key tiles of %d tokens", path, tuning.key_tile)
            return


def _places(bundle: Bundle, key: TuningKey) -> Iterator[Path]:
    folder = bundle.path.resolve()
    yield folder.with_name(f"{folder.name}.tune.json")
    cache = user_cache()
    if cache is not None:
        yield cache / f"{folder.name}-{key.manifest[:16]}.tune.json"


def _read(path: Path) -> tuple[Tuning, ...]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        held = from_json(_File, data)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError, FormatError) as error:
        logger.warning("%s: can't be read, so it counts for nothing: %s", path, error)
        return ()
    return held.tunings if held.version == VERSION else ()
