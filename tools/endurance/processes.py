"""Commands in forked processes: everything is imported once, so that a kill meets a command's own work."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil  # type: ignore[import-untyped]

from tools.endurance.cases import Work

__all__ = ["Ended", "Kill", "descendants_left", "in_child", "run_command", "start"]

NEEDED = (
    "tokenizers",
    "twoheads.compiler.frontend.torch.capture",
    "twoheads.export.cli.app",
    "onnx",
    "transformers.models.llama.modeling_llama",
    "twoheads.compiler",
)
PR_SET_CHILD_SUBREAPER = 36
"""Linux: the children of a child that is gone become ours, so that they are seen."""

PATIENCE = 60.0
"""Seconds after which a command that was told to end, or a whole one times ten, is taken to hang."""

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
"""Events of the interpreter that change a folder; a file that is opened to be written is one too."""

PROBE = re.compile("[a-z0-9_]{8}")


@dataclass(frozen=True, slots=True)
class Kill:
    """When and by what a command is killed.

    Attributes:
        signal: Of the system.
        seconds: After its start; ``None``: before operation ``operation`` on files.
        operation: Counted from 1.
    """

    signal: int
    seconds: float | None = None
    operation: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code, or minus the signal that ended it.
        seconds: From its start.
        operations: On files that it made; of a killed one 0.
        out, err: What it said.
        hung: Whether it had to be killed by force.
    """

    code: int
    seconds: float
    operations: int
    out: str
    err: str
    hung: bool = False


def start() -> None:
    """Imports what commands need, and has orphans handed to this process; nothing here may start a thread."""
    for module in NEEDED:
        importlib.import_module(module)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    threads = psutil.Process().num_threads()
    if threads != 1:
        raise RuntimeError(f"{threads} threads run, and a process with threads can't be forked")


def in_child(call: Callable[[], bytes]) -> bytes:
    """What ``call`` returns in a process of its own.

    Raises:
        RuntimeError: It raised; with what.
    """
    with tempfile.TemporaryFile() as report:
        pid = os.fork()
        if pid == 0:
            _look(call, report.fileno())
        _, status = os.waitpid(pid, 0)
        report.seek(0)
        found = report.read()
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(found.decode(errors="replace"))
    return found


def _look(call: Callable[[], bytes], report: int) -> NoReturn:
    code = 1
    try:
        _quieten(os.devnull, os.devnull)
        found = call()
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent tells it
        found = f"{type(error).__name__}: {error}".encode()
    with os.fdopen(report, "wb") as file:
        file.write(found)
    os._exit(code)


def run_command(
    words: tuple[object, ...], work: Work, kill: Kill | None = None, before: Callable[[], None] | None = None
) -> Ended:
    """Runs ``twoheads WORDS`` in a process of its own, with ``work``'s folders as temporary folder and home.

    Args:
        words: The command line.
        work: Whose.
        kill: What ends it early.
        before: Called in the new process before the command.
    """
    for name in ("out", "err"):
        (work.root / name).write_text("")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _command([str(word) for word in words], work, kill, before)
    told = hung = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        spent = time.monotonic() - began
        if kill is not None and kill.seconds is not None and spent >= kill.seconds and not told:
            os.kill(pid, kill.signal)
            told = True
        if spent > (kill.seconds + PATIENCE if told and kill and kill.seconds is not None else 10 * PATIENCE):
            os.kill(pid, signal.SIGKILL)
            hung = True
        time.sleep(0.0005)
    seconds = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    counted = work.root / "operations"
    operations = int(counted.read_text() or "0") if counted.exists() else 0
    out, err = ((work.root / name).read_text(errors="replace") for name in ("out", "err"))
    return Ended(code, seconds, operations, out, err, hung)


def _command(words: list[str], work: Work, kill: Kill | None, before: Callable[[], None] | None) -> NoReturn:
    code = 255
    try:
        (work.root / "operations").unlink(missing_ok=True)
        counted = os.open(work.root / "operations", os.O_WRONLY | os.O_CREAT)
        os.environ |= {"TMPDIR": str(work.temporary), "HOME": str(work.home)}
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background ignores it
        os.chdir(work.root)
        _quieten(str(work.root / "out"), str(work.root / "err"))
        counter = _Counter(work, kill.operation if kill else 0)
        if before is not None:
            before()
        from twoheads.export.cli.app import main

        sys.addaudithook(counter)
        code = main(words)
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        counter.operation = 0
        os.write(counted, str(counter.count).encode())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except SystemExit as error:  # a signal that came when the command was done
        code = error.code if isinstance(error.code, int) else 255
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent would
        traceback.print_exc()
        code = 254
    os._exit(code)


def _quieten(out: str, err: str) -> None:
    """Both streams go to files, and nothing comes from stdin."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, descriptor in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(out, flags)),
        (2, os.open(err, flags)),
    ):
        os.dup2(descriptor, number)
        os.close(descriptor)


class _Counter:
    """Counts what changes folders, and dies at one of them."""

    def __init__(self, work: Work, operation: int) -> None:
        self._roots = tuple(f"{folder}/" for folder in work.folders)
        self.operation = operation
        self.count = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        name = Path(os.fsdecode(arguments[0])).name if arguments and isinstance(arguments[0], str | bytes) else ""
        if PROBE.fullmatch(name):  # Python tries its folder of temporary files with a file of its own
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if not str(path).startswith(self._roots):
                return
        elif event not in WRITES:
            return
        self.count += 1
        if self.count == self.operation:
            os.kill(os.getpid(), signal.SIGKILL)


def descendants_left(seconds: float = 3.0) -> list[str]:
    """What still runs of what commands started, after so long; it is ended."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        alive = [child for child in psutil.Process().children(recursive=True) if _runs(child)]
        if not alive or time.monotonic() > end:
            break
        time.sleep(0.02)
    names = []
    for child in alive:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(child.cmdline())[-120:])
            child.kill()
    return names


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
