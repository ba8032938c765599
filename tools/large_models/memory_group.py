"""Commands whose memory, the file pages that they read included, is held to a limit by a control group of Linux."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path

__all__ = ["NoGroupError", "memory_group"]

FILES = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
"""Where groups are made, of version 1 and 2, and the file that takes the limit."""


class NoGroupError(Exception):
    """This machine lets nobody make a control group of memory."""


@contextlib.contextmanager
def memory_group(limit: int) -> Generator[Sequence[str]]:
    """A new group, gone with the context; yields the words to put before a command that is to run in it.

    Args:
        limit: Bytes. Pages of files that another process has read before are not counted: have them forgotten.

    Raises:
        NoGroupError: There are no such groups, or no right to make one.
    """
    for root, name in FILES.items():
        folder = root / f"twoheads-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / name).write_text(str(limit))
            except OSError:
                folder.rmdir()
                continue
            break
    else:
        raise NoGroupError(f"no control group of memory can be made in {' or '.join(map(str, FILES))}")
    try:
        yield ("/bin/sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")
    finally:
        folder.rmdir()
