"""The same run in a job that is killed and resumed: the same numbers, to the bit."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.measured_process import measure, twoheads_command

__all__ = ["killed_and_resumed", "same_arrays"]


def killed_and_resumed(start: list[object], job: Path, out: Path, *, after: float) -> dict[str, Any]:
    """Kills a job after ``after`` seconds, resumes it, and tells what that took.

    Args:
        start: The words of ``twoheads run``, without the job and the output.
        job: A new folder.
        out: The output.
        after: Seconds; the job is to be in the midst of its run.
    """
    command = twoheads_command(*start, "--spill", job, "--out", out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
    killed = process.wait() == -9
    began = time.perf_counter()
    done = measure(twoheads_command("resume", job), show_stderr=True)
    return {
        "job_killed": killed,
        "job_killed_after": after,
        "job_code": done.code,
        "job_resume_seconds": time.perf_counter() - began,
        "job_resume_peak_bytes": done.peak_bytes,
    }


def same_arrays(one: Path, other: Path) -> bool:
    """Whether two ``.npz`` files hold the same arrays, to the bit."""
    with np.load(one) as first, np.load(other) as second:
        return first.files == second.files and all(
            first[name].tobytes() == second[name].tobytes() for name in first.files
        )
