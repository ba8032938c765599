"""Runs of the command line that are killed, or go on, with checkpoints every half second."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.measured_process import Measured, measure
from tools.scale.models import WINDOW, Model, make_bundle, make_tokens

__all__ = ["CASES", "Case", "Interrupted"]

PROGRAM = """
import os, signal, sys
from twoheads.runtime.execution import checkpoints as checkpoint
checkpoint.CHECKPOINT_SECONDS = 0.5
moment = int(sys.argv[1])  # the operation on files at which this process dies: odd before, even after it; 0 never
count = 0

def deadly(operation):
    def call(*words, **options):
        global count
        count += 1
        now = count == (moment + 1) // 2
        if now and moment % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = operation(*words, **options)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if moment:
    os.fsync, os.replace, os.unlink = deadly(os.fsync), deadly(os.replace), deadly(os.unlink)
from twoheads.export.cli import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A run that is interrupted.

    Attributes:
        name: In words.
        model: What runs.
        length: Tokens.
        output: ``hidden`` or ``logits``.
        limit: Of memory; ``None`` for none.
    """

    name: str
    model: Model
    length: int
    output: str = "hidden"
    limit: str | None = None


CASES = (
    Case("hidden states", Model(WINDOW, 2), 12_000),
    Case("hidden states, values spilled", Model(WINDOW, 2), 60_000, limit="280MB"),
    Case("logits of 4,096 classes", Model(WINDOW, 1, classes=4096), 16_000, "logits"),
    Case("stock lowering", Model(WINDOW, 1, lowering="stock"), 8_000),
    Case("sampled attention", Model("causal", 1, attention="average:samples=2+window:512"), 12_000),
)


class Interrupted:
    """One case, its undisturbed result, and a run that is stopped again and again.

    Args:
        root: An empty folder for bundle, input and undisturbed output.
        case: What runs.
        job, out: The job's folder and the output of the run that is stopped.
    """

    def __init__(self, root: Path, case: Case, *, job: Path, out: Path) -> None:
        self.case, self.job, self.out = case, job, out
        bundle = make_bundle(root / "bundle", case.model)
        words: list[object] = ["run", bundle, "--tokens", make_tokens(root, case.length), "--output", case.output]
        self._start = [*words, *(["--memory-limit", case.limit] if case.limit else []), "--spill"]
        self._expected = root / "expected.npz"
        whole = measure(self.command(*self._start, root / "undisturbed", "--out", self._expected))
        if whole.code:
            raise SystemExit(f"{case.name}: the undisturbed run ended with {whole.code}\n{whole.err}")
        self.seconds = whole.seconds
        self.spilled = case.limit is not None

    @staticmethod
    def command(*words: object, moment: int = 0) -> list[str]:
        """The command line ``twoheads WORDS`` that dies at operation ``moment`` on files."""
        return [sys.executable, "-c", PROGRAM, str(moment), *map(str, words)]

    def next_command(self, moment: int = 0) -> list[str]:
        """Starts the run, or goes on with it."""
        if (self.job / "job.json").exists() and self.status()["state"] != "finished":
            return self.command("resume", self.job, moment=moment)
        return self.command(*self._start, self.job, "--out", self.out, moment=moment)

    def status(self) -> dict[str, Any]:
        """What ``twoheads status`` says."""
        done = measure(self.command("status", self.job, "--json"))
        if done.code:
            raise SystemExit(f"{self.case.name}: status ended with {done.code}\n{done.err}")
        facts: dict[str, Any] = json.loads(done.out)
        return facts

    def run_for(self, seconds: float | None, moment: int = 0) -> bool:
        """Lets a process run, for so long at most; whether it was killed, by us or by itself."""
        process = subprocess.Popen(self.next_command(moment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        began = time.monotonic()
        while process.poll() is None:
            if seconds is not None and time.monotonic() - began > seconds:
                process.kill()
            time.sleep(0.01)
        _, told = process.communicate()
        if process.returncode not in (0, -9):
            raise SystemExit(f"{self.case.name}: a run ended with {process.returncode}\n{told.decode()}")
        return process.returncode == -9

    def resume(self) -> Measured:
        """Goes on to the end."""
        return measure(self.next_command())

    def is_identical(self) -> bool:
        """Whether the output's arrays are those of the undisturbed run, to the bit."""
        with np.load(self.out) as found, np.load(self._expected) as expected:
            return found.files == expected.files and all(
                found[name].tobytes() == expected[name].tobytes() for name in expected.files
            )
