"""SIGKILL at random moments, and at random operations on files: every resume must end in the same bits."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.scale.interrupted import CASES, Case, Interrupted

__all__ = ["measure_kills"]

OPERATIONS = 120
"""Moments within operations on files of which one is drawn: few runs have more."""


def measure_kills(root: Path, count: int) -> Iterator[dict[str, Any]]:
    """For every case ``count`` kills at random moments and as many at operations of checkpoints."""
    moments = random.Random(7)  # noqa: S311 - no secret
    for at, case in enumerate(CASES):
        yield _kill(root / str(at), case, count, moments)


def _kill(root: Path, case: Case, count: int, moments: random.Random) -> dict[str, Any]:
    root.mkdir()
    run = Interrupted(root, case, job=root / "job", out=root / "out.npz")
    kills = {"moments": 0, "operations": 0}
    finished = identical = early = 0
    for kind in kills:
        while kills[kind] < count:
            run.out.unlink(missing_ok=True)
            while not run.out.exists():
                killing = kills[kind] < count
                after = moments.uniform(0.3, 1.1) * run.seconds if killing and kind == "moments" else None
                moment = moments.randrange(1, OPERATIONS) if killing and kind == "operations" else 0
                kills[kind] += run.run_for(after, moment)
            early += run.status()["state"] != "finished"
            finished += 1
            identical += run.is_identical()
            sys.stderr.write(f"{case.name}: {kills}, {finished} finished, {identical} identical\n")
    return {
        "name": case.name,
        "length": case.length,
        "seconds": run.seconds,
        **kills,
        "finished": finished,
        "identical": identical,
        "unfinished_jobs": early,
    }
