"""A small disk of its own (tmpfs, so root is needed) that becomes full while a run writes to it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.scale.interrupted import CASES, Case, Interrupted

__all__ = ["measure_full_disk"]

CHUNK = bytes(1 << 12)


@dataclass(frozen=True, slots=True)
class Moment:
    """When the disk becomes full.

    Attributes:
        name: In words.
        case: What runs.
        megabytes: The disk's size.
        leave: Bytes that are left free.
        on_disk: ``job`` or ``out``, what lies on that disk.
    """

    name: str
    case: Case
    megabytes: int
    leave: int
    on_disk: str


SPILLED, LOGITS = CASES[1], CASES[2]
MOMENTS = (
    Moment("before it starts", SPILLED, 100, 1 << 40, "job"),
    Moment("while it spills", SPILLED, 500, 1 << 20, "job"),
    Moment("in a checkpoint", SPILLED, 500, 0, "job"),
    Moment("while it writes logits", replace(LOGITS, length=30_000), 600, 0, "out"),
)


def measure_full_disk(root: Path) -> Iterator[dict[str, Any]]:
    """Every moment: what the run said, and how it went on when there was room again."""
    for at, moment in enumerate(MOMENTS):
        yield _fill(root / str(at), moment)


def _fill(root: Path, moment: Moment) -> dict[str, Any]:
    root.mkdir()
    with _disk(root / "disk", moment.megabytes) as disk:
        places = {"job": root / "job", "out": root / "out.npz"}
        places[moment.on_disk] = disk / places[moment.on_disk].name
        run = Interrupted(root, moment.case, job=places["job"], out=places["out"])
        process = subprocess.Popen(run.next_command(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not _is_under_way(run, moment):
            time.sleep(0.02)
        ballast = disk / "ballast"
        _write_ballast(ballast, disk, moment.leave)
        _, told = process.communicate()
        state = run.status()["state"] if (run.job / "job.json").exists() else "not begun"
        sys.stderr.write(f"{moment.name}: {process.returncode}, {state}, {told}\n")
        found = {
            "name": moment.name,
            "code": process.returncode,
            "said": [line.replace(str(root), "") for line in told.splitlines() if "error" in line or "fix:" in line],
            "state": state,
            "output_there": run.out.exists(),
        }
        ballast.unlink()
        if process.returncode and moment.leave < disk_bytes(moment):
            resumed = run.resume()
            if resumed.code:
                raise SystemExit(f"{moment.name}: the resumed run ended with {resumed.code}\n{resumed.err}")
            found["identical"] = run.is_identical()
        return found


def disk_bytes(moment: Moment) -> int:
    """The disk's size in bytes."""
    return moment.megabytes * 10**6


def _is_under_way(run: Interrupted, moment: Moment) -> bool:
    """Whether the first stage is finished, or a good part of the output is written."""
    if moment.on_disk == "job":
        return (run.job / "journal.json").exists()
    return any(path.stat().st_size > 50_000_000 for path in run.out.parent.glob(".*.partial"))


def _write_ballast(path: Path, disk: Path, leave: int) -> None:
    """Fills the disk but for ``leave`` bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while _free(disk) > leave:
            file.write(CHUNK)


def _free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


@contextlib.contextmanager
def _disk(path: Path, megabytes: int) -> Generator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
