"""What a mutant's process touches: files outside of its own folder are not written, and some are not read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["TRAP", "Watch", "set_trap"]

TRAP = "outside"
"""The folder beside a mutant that names in it lead to: real files, which nothing may open."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

PATHS = {
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.utime": ((0, 3),),
    "os.truncate": ((0, None),), "shutil.rmtree": ((0, None),),
}  # fmt: skip
"""Events of Python's audit that change a file system: which of their arguments are paths, and folders of these."""

STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
"""Events that start another program, which no kind does."""


def set_trap(scratch: Path, bases: Path) -> None:
    """Puts real files where names that leave a mutant's folder lead."""
    trap = scratch / TRAP
    trap.mkdir()
    for file in ("bundle/engines/weights.bin", "source/model.safetensors"):
        held = (bases / file).read_bytes() if (bases / file).exists() else b"\0" * 65_536
        (trap / Path(file).name).write_bytes(held)


class Watch:
    """Notes the first thing that a process may not do, and stops it before it happens.

    Args:
        allowed: What may be written below.
        unread: What may not be read either.
    """

    def __init__(self, allowed: tuple[Path, ...], unread: tuple[Path, ...]) -> None:
        self._allowed = (*(os.path.realpath(path) for path in allowed), "/dev/null", "/dev/shm")  # noqa: S108
        self._unread = tuple(os.path.realpath(path) for path in unread)
        self.found: str | None = None

    def begin(self) -> None:
        """From now on, to the end of this process."""
        sys.dont_write_bytecode = True  # Python keeps what it compiles of modules that are imported later
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & WRITING) or (isinstance(mode, str) and any(at in mode for at in "wax+"))
            self._check(event, path, writes=writes)
        elif event in PATHS:
            for at, folder in PATHS[event]:
                self._check(event, _within(arguments[at], None if folder is None else arguments[folder]), writes=True)
        elif event in STARTS:
            self._stop(f"{event} {arguments[0]!r}")

    def _check(self, event: str, path: Any, *, writes: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        if "\0" in name:  # the system takes no such name
            return
        folder, last = os.path.split(os.path.abspath(name))
        real = os.path.join(os.path.realpath(folder), last)
        if writes and not _below(real, self._allowed):
            self._stop(f"{event} {real} to write")
        elif not writes and _below(os.path.realpath(real), self._unread):
            self._stop(f"{event} {real} to read")

    def _stop(self, what: str) -> None:
        self.found = self.found or what
        raise PermissionError(f"not in a fuzzed process: {what}")


def _within(path: Any, folder: Any) -> Any:
    """``path``, which may be one of an open folder."""
    if isinstance(folder, int) and folder >= 0 and not isinstance(path, int):
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    return path


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)
