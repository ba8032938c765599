"""Runs one vendor's compiler in its own environment: ``PYTHON harness.py MODULE REQUESTS.json REPORTS.jsonl``.

``PYTHON harness.py MODULE DEVICE`` prints as JSON the compiler's name and version, and what is missing to build for
that device.

Nothing of twoheads is imported, for the environment need not have it. ``MODULE``, a file beside this one, has

* ``identify()``: the compiler's name and version,
* ``build(request)``: writes files into ``request["folder"]``, and, if there are ``request["outputs"]``, what its
  emulator computes from the ``request["inputs"]``; in int8 by the ranges that values have in ``request["samples"]``,
* ``off_accelerator(log)``: the nodes that the compiler's log says are left to the host, as ``operator node``,
* and, where something may be, ``missing(device)``: in words what is missing here for a device, or an empty text.

Each report is a line that is written at once, so that a compiler which kills the process loses one engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
"""Linux: which signal a process gets when its parent is gone."""

PARENT = "TWOHEADS_PARENT"
"""In the environment: the number of the process that starts this one."""


def main(arguments: list[str]) -> int:
    """Builds everything that is asked for; an engine that is refused is reported, and is no failure of this program."""
    _end_with_parent()
    compiler = importlib.import_module(arguments[0])
    if len(arguments) == 2:
        missing = compiler.missing(arguments[1]) if hasattr(compiler, "missing") else ""
        sys.stdout.write("\n" + json.dumps({**compiler.identify(), "missing": missing}) + "\n")
        return 0
    requests = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    with Path(arguments[2]).open("a", encoding="utf-8") as reports:
        for request in requests:
            reports.write(json.dumps({"name": request["name"], **_attempt(compiler, request)}) + "\n")
            reports.flush()
    return 0


def _end_with_parent() -> None:
    """Ends this process when the one that started it ends, however that does: nobody would read what it makes."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):  # it ended before the system was asked
        sys.exit(1)


def _attempt(compiler: Any, request: dict[str, Any]) -> dict[str, Any]:
    log = Path(request["log"])
    error = None
    began = time.perf_counter()
    with _captured(log):
        try:
            compiler.build(request)
        except BaseException as raised:  # noqa: BLE001 - whatever a compiler raises is its answer, SystemExit included
            traceback.print_exc()
            error = f"{type(raised).__name__}: {raised}"
    seconds = time.perf_counter() - began
    off = compiler.off_accelerator(log.read_text(encoding="utf-8", errors="replace"))
    return {"error": error, "off": off, "seconds": seconds}


@contextlib.contextmanager
def _captured(log: Path) -> Generator[None]:
    """Lets the file ``log`` take what is printed, by compiled code too."""
    kept = [os.dup(stream) for stream in (1, 2)]
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, former in zip((1, 2), kept, strict=True):
                os.dup2(former, stream)
                os.close(former)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
