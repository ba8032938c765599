"""A folder that the processes of one test run share, so that what one has compiled the others read."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["make_shared_folder", "publish", "remove_shared_folder", "shared_folder"]

NAMED = "TWOHEADS_TESTS_FOLDER"
"""The variable that names it to the processes that the first one starts."""


def make_shared_folder() -> None:
    """By the process that starts the others, before it does."""
    os.environ[NAMED] = tempfile.mkdtemp(prefix="twoheads-tests-")


def remove_shared_folder() -> None:
    """By the same one, when the others have ended."""
    shutil.rmtree(os.environ.pop(NAMED), ignore_errors=True)


def shared_folder() -> Path:
    """The folder; it is there."""
    return Path(os.environ[NAMED])


def publish(made: Path, name: str) -> Path:
    """Gives what lies at ``made``, in the shared folder, its name there; what another made before is kept."""
    place = shared_folder() / name
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise
    return place
