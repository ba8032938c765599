"""What ``twoheads plan --device`` adds: the time that a run will take by a device's profile."""

import dataclasses
from pathlib import Path
from typing import Any

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import seconds_text
from twoheads.graphs.prediction.device_profile import DeviceProfile, read_profile
from twoheads.graphs.prediction.one_machine import RunTime, predict_run
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["device_threads", "measured_tiles", "read_device", "time_fact", "time_to_json"]


def read_device(path: Path, program: Program) -> DeviceProfile:
    """The profile in ``path``, which must be of ``program``.

    Raises:
        InputError: It is none, or of another program.
    """
    profile = read_profile(arguments.require_path(path, "a device profile, which `twoheads profile` writes"))
    profile.check_program(program, str(path))
    return profile


def measured_tiles(path: Path, bundle: Bundle) -> Bundle:
    """The bundle with the key tiles that the profile in ``path`` was measured with, if it offers them."""
    width = read_profile(arguments.require_path(path, "a device profile, which `twoheads profile` writes")).key_tile
    return bundle.with_key_tile(width) if width in bundle.manifest.key_tiles else bundle


def device_threads(path: Path, profile: DeviceProfile, threads: int | None) -> int:
    """The workers of a predicted run: as many as were measured unless told otherwise.

    Raises:
        InputError: More than were measured.
    """
    if threads is not None:
        profile.check_threads(threads, str(path))
    return threads or profile.threads[-1]


def time_fact(run: RunTime, profile: DeviceProfile) -> tuple[str, str]:
    """One line for people."""
    kinds = ("model", "window", "tokenwise", "attention", "scan", "experts", "sequence")
    parts = {kind: sum(stage.seconds for stage in run.stages if stage.kind == kind) for kind in kinds}
    named = ", ".join(f"{kind} {seconds_text(seconds)}" for kind, seconds in parts.items() if seconds)
    workers = f"{run.threads} thread{'s' * (run.threads > 1)} of {profile.machine}"
    opening = f"the first run of a process opens engines for {seconds_text(run.open_seconds)} more"
    return "time", f"{seconds_text(run.seconds)} with {workers} ({named}); {opening}"


def time_to_json(schedule: Schedule, profile: DeviceProfile, threads: int) -> dict[str, Any]:
    """The predicted times as entries of ``plan --json``."""
    run = predict_run(schedule, profile, threads)
    return {
        "machine": profile.machine,
        "threads": threads,
        "seconds": run.seconds,
        "open_seconds": run.open_seconds,
        "touch_seconds": run.touch_seconds,
        "stages": [dataclasses.asdict(stage) for stage in run.stages],
    }
