"""Folders for intermediate files, gone when their command is; what a killed one left is swept by the next."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from twoheads.runtime.memory.new_file import hold

__all__ = ["scratch_folder"]

PREFIX, LOCK = "twoheads-scratch-", ".lock"


@contextlib.contextmanager
def scratch_folder() -> Generator[Path]:
    """A new empty folder among the temporary files, and none of those that killed commands of this user left."""
    _sweep(Path(tempfile.gettempdir()))
    base = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (base / LOCK).open("xb") as lock:  # let go by the system however the process ends
            hold(lock.fileno())
            folder = base / "files"
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _sweep(temporary: Path) -> None:
    for base in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            ours = base.is_dir() and not base.is_symlink() and base.stat().st_uid == os.getuid()
            if ours and (base / LOCK).is_file() and _is_free(base / LOCK):
                shutil.rmtree(base, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    with lock.open("rb") as file:
        return hold(file.fileno())
