"""Runs one command in a process of its own and tells its wall time and its peak memory.

The system counts a process's peak from what started it: a child of a tool that has loaded a model begins with the
tool's own peak. So a small process of its own starts the command and tells what it took.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Measured", "ProcessFailedError", "measure", "measure_json", "twoheads_command"]


LAUNCHER = """
import json, os, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
told = {"status": status, "seconds": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss}
os.write(int(sys.argv[1]), json.dumps(told).encode())
"""


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


def measure(
    command: Sequence[str], *, show_stderr: bool = False, environment: Mapping[str, str] | None = None
) -> Measured:
    """Runs ``command`` to its end.

    Args:
        command: Program and arguments.
        show_stderr: Leave stderr to the terminal, for progress bars.
        environment: Of the command, instead of this process's.

    Raises:
        ProcessFailedError: There is no such program.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as told:
        words = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(told.fileno()), *command]
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=None if show_stderr else err,
            pass_fds=[told.fileno()],
            process_group=0,
            env=environment,
        )
        try:
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the command, too
            raise
        seconds = time.perf_counter() - start
        for file in (out, err, told):
            file.seek(0)
        if process.returncode:
            raise ProcessFailedError(f"{' '.join(command)}\ncan't be started\n{err.read()}")
        facts = json.load(told)
        peak = facts["peak"] * (1 if sys.platform == "darwin" else 1024)
        code = os.waitstatus_to_exitcode(facts["status"])
        return Measured(code, seconds, facts["seconds"], peak, out.read(), err.read())


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
