"""How tests start processes that they interrupt, also where their own parent ignores Ctrl-C, as background jobs do."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Generator, Sequence

__all__ = ["heed_interrupts", "process_that_heeds"]


def heed_interrupts() -> None:
    """Given as ``preexec_fn``: an ignored signal is inherited, and Python then never raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def process_that_heeds(command: Sequence[str]) -> Generator[subprocess.Popen[str]]:
    """A process that Ctrl-C reaches, with its output in pipes; killed at the end whatever happened."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
