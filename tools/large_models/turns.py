"""How long compiling takes with the code of another checkout and with this one, in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tools.before_after import side_environment
from tools.large_models.bounds import forget_file, reading_seconds, writing_seconds
from tools.measured_process import ProcessFailedError, measure, twoheads_command
from twoheads.graphs.serialization.bundle_format import WEIGHTS

__all__ = ["measure_turn"]

HERE = Path(__file__).parents[2]


def measure_turn(scratch: Path, model: Path, other: Path) -> dict[str, Any]:
    """Compiles ``model`` with either code, from the disk; and what reading it and writing its weights takes.

    Args:
        scratch: Where the bundle is while it is needed.
        model: A file or folder.
        other: The other checkout.
    """
    sources = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    bundle = scratch / "turn"
    sides: dict[str, dict[str, float]] = {}
    for name, checkout in (("before", other), ("after", HERE)):
        shutil.rmtree(bundle, ignore_errors=True)
        for source in sources:
            forget_file(source)
        done = measure(twoheads_command("compile", model, "-o", bundle), environment=side_environment(checkout))
        if done.code:
            raise ProcessFailedError(f"{name}: {done.err}")
        sides[name] = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_bytes": done.peak_bytes}
    weights = bundle / WEIGHTS
    least = sum(map(reading_seconds, sources)) + writing_seconds(weights)
    shutil.rmtree(bundle)
    commit = subprocess.run(
        ["git", "-C", str(other), "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return {**sides, "least_seconds": least, "commit": commit, "load": os.getloadavg()[0]}
