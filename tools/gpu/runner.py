"""Runs one step as a process with a limit, and says what came of it. The standard library alone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu.steps import Step

__all__ = ["PACKAGES_OF_OURS", "Outcome", "run_step"]

PACKAGES_OF_OURS = ("compiler", "graphs", "export", "runtime")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step.

    Attributes:
        name: Of the step.
        seconds: That it took.
        facts: What it found, by words.
        rows: Of a table, where it measured one; the first row has the headings.
        problem: Why it failed, in one line; ``None`` where it did not.
    """

    name: str
    seconds: float
    facts: dict[str, str] = field(default_factory=dict[str, str])
    rows: tuple[tuple[str, ...], ...] = ()
    problem: str | None = None


def run_step(python: Path, root: Path, name: str, step: Step, left: float) -> Outcome:
    """The step ``name`` by ``python``, in ``left`` seconds at most."""
    limit = min(step.seconds, left)
    if limit <= 0:
        return Outcome(name, 0.0, problem="not begun: the time was over")
    began = time.monotonic()
    command = [str(python), "-m", "tools.gpu.one_step", name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / one) for one in (".", *PACKAGES_OF_OURS))}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, limit, problem=f"not done after {limit:.0f} s")
    except OSError as error:
        return Outcome(name, 0.0, problem=f"{python} can't be started: {error.strerror}")
    seconds = time.monotonic() - began
    told = _told(done.stdout)
    if done.returncode == 0 and told is not None:
        return Outcome(name, seconds, told["facts"], tuple(tuple(row) for row in told["rows"]))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1][:300] if lines else "no message"
    return Outcome(name, seconds, problem=said if done.returncode == 1 else f"ended with {done.returncode}: {said}")


def _told(out: str) -> Any:
    """What the step printed last, if that is what a step prints."""
    try:
        told = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return told if isinstance(told, dict) and told.keys() == {"facts", "rows"} else None
