"""Runs one mutant in a forked process with limits of time and memory, and says what became of it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twoheads.graphs.errors import TwoheadsError

__all__ = ["FAULTS", "Verdict", "judge"]

FAULTS = ("traceback", "hang", "memory", "crash")
"""What must not happen."""

SECONDS = 20
"""Of a processor; of the clock three times as much, as others may use the machine."""

BASE_SECONDS = 300
MOST_BYTES = 2_000_000_000
"""Resident memory of a process; the bases take a quarter of it."""

POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: an outcome, and for a fault what was seen."""

    outcome: str
    detail: str = ""


def judge(call: Callable[[], bytes], expected: bytes | None, seconds: int | None = None) -> Verdict:
    """Calls it in a process of its own; ``expected`` is the base's result.

    Outcomes: ``refused`` (an error that names what is wrong), ``same``, ``different``, or one of :data:`FAULTS`.
    """
    limit = SECONDS if seconds is None else seconds
    with tempfile.TemporaryFile() as report:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            _child(call, expected, report.fileno())
        ended = time.monotonic() + 3 * limit
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > ended:
                os.kill(child, signal.SIGKILL)
                os.wait4(child, 0)
                return Verdict("hang", f"no end after {3 * limit} s")
            time.sleep(POLL_SECONDS)
        report.seek(0)
        outcome, _, detail = report.read().decode("utf-8", "replace").partition("\n")
    if usage.ru_maxrss * 1024 > MOST_BYTES:
        return Verdict("memory", f"{usage.ru_maxrss // 1024} MB")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Verdict("hang", f"no end after {limit} s of a processor")
    if not outcome:
        return Verdict("crash", f"ended by status {status}")
    return Verdict(outcome, detail)


def _child(call: Callable[[], bytes], expected: bytes | None, report: int) -> None:
    """Never returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    said = "crash"
    try:
        found = call()
        said = "same" if found == expected else "different"
    except (TwoheadsError, OSError) as error:
        said = f"refused\n{error}"
    except BaseException:  # noqa: BLE001 - a panic of a library is none of Exception
        said = f"traceback\n{traceback.format_exc()}"
    with contextlib.suppress(OSError):
        os.write(report, said.encode("utf-8", "replace"))
    os._exit(0)


def result_of(call: Callable[[], bytes], folder: Path) -> bytes:
    """What ``call`` returns, from a process of its own: this one stays without threads, so that it can be forked."""
    file = folder / "result"

    def keep() -> bytes:
        file.write_bytes(call())
        return b""

    verdict = judge(keep, b"", BASE_SECONDS)
    if verdict.outcome != "same":
        raise RuntimeError(f"a base is no base: {verdict}")
    return file.read_bytes()
