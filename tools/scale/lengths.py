"""Time, memory, disk and calls of one input, with its values in files and within a limit of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.measured_process import measure_json, twoheads_command
from tools.scale.models import WINDOW, Model, make_bundle, make_tokens

__all__ = ["KINDS", "measure_length"]

KINDS = {"windowed": Model(WINDOW, layers=4), "full": Model("causal", layers=1, block_size=512)}


def measure_length(root: Path, kind: str, length: int, limit: str) -> dict[str, Any]:
    """Runs ``length`` tokens through the model ``kind`` in a process of its own, with progress on the terminal.

    Args:
        root: An empty folder; the bundle, the job's values and the output come there.
        kind: One of :data:`KINDS`.
        length: Tokens.
        limit: Of memory, as the command line reads it.
    """
    model = KINDS[kind]
    bundle, out = make_bundle(root / "bundle", model), root / "out.npz"
    words = ("run", bundle, "--tokens", make_tokens(root, length), "--out", out, "--output", "hidden")
    done, report = measure_json(
        twoheads_command(*words, "--memory-limit", limit, "--spill", root / "job", "--json"), show_stderr=True
    )
    stages = report["stages"]
    return {
        "block_size": model.block_size,
        "limit": limit,
        "threads": report["threads"],
        "seconds": report["seconds"],
        "cpu_seconds": done.cpu_seconds,
        "peak_bytes": report["peak_bytes"],
        "spilled_bytes": report["spilled_bytes"],
        "output_bytes": out.stat().st_size,
        "engine_calls": report["engine_calls"],
        "formula_calls": report["formula_calls"],
        "repeated_calls": report["repeated_calls"],
        "attention_calls": sum(stage["calls"] for stage in stages if stage["kind"] == "attention"),
    }
