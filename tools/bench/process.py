"""The parent's side of a contender's process."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.bench.contenders import Setting

__all__ = ["ContenderError", "ContenderProcess"]

ROOT = Path(__file__).parent.parent.parent


class ContenderError(Exception):
    """A contender can't be loaded, fails, takes too long, or its process has died; the message says which."""


class ContenderProcess:
    """A contender that waits for commands; a context manager, which ends the process.

    Args:
        name: Its key in ``CONTENDERS``.
        setting: What it is made from.
        module: The module whose ``main`` serves it; a test may have its own.
    """

    def __init__(self, name: str, setting: Setting, *, module: str = "tools.bench.child") -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by __exit__
        # The kernels of some libraries read their number of threads here.
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, json.dumps(asdict(setting))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        """Ends the process, and gives its memory back."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def wait(self, timeout: float) -> dict[str, Any]:
        """The next answer: that of the last command or, at first, that it is loaded.

        Raises:
            ContenderError: It says that it failed, the process ends, or ``timeout`` seconds are over.
        """
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise ContenderError(f"took longer than {timeout:.0f} s") from None
        if not line:
            self._answers.put("")  # for whoever asks a dead process again
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            died = f"its process died of signal {-code}" if code < 0 else f"its process ended with {code}"
            raise ContenderError(f"{died}: {said[-1][:200]}" if said else died)
        answer: dict[str, Any] = json.loads(line)
        if answer["error"] is not None:
            raise ContenderError(answer["error"])
        return answer

    def ask(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to ``command``.

        Raises:
            ContenderError: As :meth:`wait`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; waiting for its answer says of what
        return self.wait(timeout)
