"""Programs that kill themselves, each in a process of its own that has what it imports already.

Such a program takes a fraction of a second behind imports of several. So one process imports, and forks for each. It
has no threads, as it has computed nothing yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["Forks", "forks"]

ROOT = Path(__file__).parents[1]

FORKING = """
import json, os, sys, traceback
exec(json.loads(sys.stdin.readline()))
for line in sys.stdin:
    program, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            exec(program, {"arguments": arguments})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs programs that find their arguments, a list of texts, under this name."""

    def __init__(self, asked: IO[str], told: IO[str]) -> None:
        self._asked = asked
        self._told = told

    def __call__(self, program: str, *arguments: object) -> int:
        """The exit code of a process of its own: minus the number of the signal that has ended it."""
        self._asked.write(json.dumps([program, [str(argument) for argument in arguments]]) + "\n")
        self._asked.flush()
        return int(self._told.readline())


@contextmanager
def forks(imports: str) -> Generator[Forks]:
    """Processes that begin when ``imports`` has run; the one that forks them ends with the context."""
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(imports) + "\n")
            yield Forks(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait()
