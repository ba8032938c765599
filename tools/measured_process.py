"""Runs one command in a process of its own and tells its wall time and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Measured", "ProcessFailedError", "measure", "measure_json", "twoheads_command"]


class ProcessFailedError(Exception):
    """A command ended with an exit code that was not expected."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a command.

    Attributes:
        code: Exit code.
        seconds: Wall time from start to end, the interpreter's start included.
        cpu_seconds: What its threads computed, summed; other work on the machine changes it little.
        peak_bytes: The most resident memory that the process (or a child of it) had.
        out, err: What it printed; ``err`` is empty if stderr was left to the terminal.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    out: str
    err: str


def twoheads_command(*words: object) -> list[str]:
    """The command line ``twoheads WORDS`` in this environment's interpreter."""
    return [sys.executable, "-m", "twoheads.export.cli", *map(str, words)]


def measure(command: Sequence[str], *, show_stderr: bool = False) -> Measured:
    """Runs ``command`` to its end.

    Args:
        command: Program and arguments.
        show_stderr: Leave stderr to the terminal, for progress bars.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=None if show_stderr else err)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait again
        out.seek(0)
        err.seek(0)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Measured(process.returncode, seconds, usage.ru_utime + usage.ru_stime, peak, out.read(), err.read())


def measure_json(
    command: Sequence[str], *, expected: Sequence[int] = (0,), show_stderr: bool = False
) -> tuple[Measured, Any]:
    """Runs ``command`` and reads the JSON that it prints.

    Raises:
        ProcessFailedError: Its exit code is not among the ``expected``, or it printed no JSON.
    """
    done = measure(command, show_stderr=show_stderr)
    if done.code not in expected:
        raise ProcessFailedError(f"{' '.join(command)}\nended with {done.code}\n{done.err}")
    try:
        return done, json.loads(done.out)
    except ValueError:
        raise ProcessFailedError(f"{' '.join(command)}\nprinted no JSON\n{done.err}") from None
