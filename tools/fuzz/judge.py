"""Runs one mutant in a forked process with limits of time and memory, and says what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.fuzz.watch import Watch
from twoheads.graphs.errors import TwoheadsError

__all__ = ["FAULTS", "MODULES", "Answer", "TwoAnswersError", "Verdict", "judge", "measure"]

FAULTS = ("traceback", "hang", "memory", "crash", "outside", "two answers", "unexplained")
"""What must not happen."""

SECONDS = 20
"""Of a processor; of the clock three times as much, as others may use the machine."""

BASE_SECONDS = 300

MODULES = "modules"
"""The file that says which modules a base has imported."""

LEAN_BYTES = 80_000_000
"""What a process takes that only runs a bundle; this one has the compiler in it, too."""

MOST_TIMES = 1.5
"""Of the planned memory."""

MOST_BYTES = 4_000_000_000
"""At which a process is ended, whatever it had planned: others use the machine."""

POLL_SECONDS = 0.002
PAGE = resource.getpagesize()


class TwoAnswersError(Exception):
    """One input gave two results, by the way on which they were computed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an input gave, and the memory that was planned for it beside the process itself, if a plan says."""

    content: bytes
    planned: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: an outcome, what was seen, and the bytes that the process grew by."""

    outcome: str
    detail: str = ""
    grown: int = 0


def judge(
    call: Callable[[], Answer], expected: Answer, watch: Watch | None = None, seconds: int | None = None
) -> Verdict:
    """Calls it in a process of its own; ``expected`` is the base's result, with the memory that it took.

    Outcomes: ``refused`` (an error that names what is wrong), ``same``, ``different``, or one of :data:`FAULTS`.
    """
    limit = SECONDS if seconds is None else seconds
    with tempfile.TemporaryFile() as report:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            _child(call, expected, watch, report.fileno())
        status, problem = _await(child, 3 * limit)
        if problem is not None:
            return problem
        report.seek(0)
        said = report.read()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict("hang", f"no end after {limit} s of a processor")
    if not said:
        return Verdict("crash", f"ended by status {status}")
    outcome, detail, grown, planned = json.loads(said)
    if grown > MOST_TIMES * (planned + LEAN_BYTES) - LEAN_BYTES and outcome not in FAULTS:
        return Verdict("memory", f"{grown >> 20} MiB, planned were {planned >> 20}; {outcome}: {detail}", grown)
    return Verdict(outcome, detail, grown)


def _await(child: int, seconds: float) -> tuple[int, Verdict | None]:
    """The status of a process that has ended, or the verdict on one that had to be ended."""
    ended = time.monotonic() + seconds
    polls = 0
    while True:
        pid, status, _ = os.wait4(child, os.WNOHANG)
        if pid:
            return status, None
        polls += 1
        late = time.monotonic() > ended
        if late or (polls % 50 == 0 and _resident(child) > MOST_BYTES):
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            problem = Verdict("hang", f"no end after {seconds} s") if late else Verdict("memory", f"over {MOST_BYTES}")
            return 0, problem
        time.sleep(POLL_SECONDS)


def _resident(process: int | str) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    return 0


def _child(call: Callable[[], Answer], expected: Answer, watch: Watch | None, report: int) -> None:
    """Never returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    before, planned = _resident("self"), expected.planned or 0
    if watch is not None:
        watch.begin()
    try:
        found = call()
        said, detail = ("same" if found.content == expected.content else "different"), ""
        planned = planned if found.planned is None else found.planned
    except (TwoheadsError, OSError) as error:
        said, detail = "refused", str(error)
    except TwoAnswersError as error:
        said, detail = "two answers", str(error)
    except BaseException:  # noqa: BLE001 - a panic of a library is none of Exception
        said, detail = "traceback", traceback.format_exc()
    if watch is not None and watch.found is not None:
        said, detail = "outside", f"{watch.found}; then: {said} {detail}"
    grown = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
    with contextlib.suppress(OSError):
        os.write(report, json.dumps([said, detail[-8000:], grown, planned]).encode("utf-8", "replace"))
    os._exit(0)


def measure(call: Callable[[], Answer], folder: Path) -> Answer:
    """What ``call`` returns, with the memory that it took, from a process of its own, which names its modules.

    This process stays without threads, so that it can be forked.
    """
    file = folder / "result"

    def keep() -> Answer:
        answer = call()
        file.write_bytes(answer.content)
        (folder / MODULES).write_text("\n".join(sys.modules))
        return Answer(b"", answer.planned)

    verdict = judge(keep, Answer(b"", MOST_BYTES), seconds=BASE_SECONDS)
    if verdict.outcome != "same":
        raise RuntimeError(f"a base is no base: {verdict.outcome} {verdict.detail}")
    return Answer(file.read_bytes(), verdict.grown)
