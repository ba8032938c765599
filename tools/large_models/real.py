"""A model of real size: the memory of its compile, and a run under a memory limit beside the unlimited one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tools.large_models.job import same_arrays
from tools.large_models.make import QWEN, make_qwen
from tools.measured_process import ProcessFailedError, measure, measure_json, twoheads_command
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["measure_real", "real_model"]

TEXT = Path(__file__).parents[1] / "data" / "founding_documents.txt"


TOKENS = 2048
"""Of the input of a model without a tokenizer."""

CHARACTERS = 9_000
"""Of the text: some two thousand tokens."""


def real_model(scratch: Path, asked: str) -> Path:
    """The file or folder ``asked``, or the model of that name, of random weights, which is made unless it is there."""
    if asked != QWEN:
        return Path(asked)
    folder = scratch / QWEN
    return folder if folder.exists() else make_qwen(folder)


def _input(scratch: Path, model: Path) -> tuple[object, ...]:
    """A text of some two thousand tokens; random ones for a folder without a tokenizer."""
    if model.is_file() or (model / "tokenizer.json").exists():
        text = scratch / "text.txt"
        text.write_text(TEXT.read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
        return ("--text", text)
    np.save(scratch / "tokens.npy", np.random.default_rng(0).integers(0, 100_000, TOKENS))
    return ("--tokens", scratch / "tokens.npy")


def measure_real(scratch: Path, model: Path, limit: str, outputs: Sequence[str]) -> dict[str, Any]:
    """Compiles ``model``, and runs an input of some two thousand tokens with ``limit`` and without, for ``outputs``."""
    bundle = scratch / "real"
    shutil.rmtree(bundle, ignore_errors=True)
    words = ["-m", "tools.large_models.compile_child", str(model), str(bundle)]
    done, phases = measure_json([sys.executable, *words], show_stderr=True)
    weights = read_bundle(bundle, check="size", engines=False).manifest.weights
    found: dict[str, Any] = {
        "largest_weight_bytes": max(4 * prod(entry.shape) for entry in weights.values()),
        "compile_seconds": done.seconds,
        "compile_cpu_seconds": done.cpu_seconds,
        "compile_peak_bytes": done.peak_bytes,
        "phases": phases,
        "limit": limit,
    }
    given = _input(scratch, model)
    found["outputs"] = {
        output: _both_ways(scratch, ("run", bundle, *given, "--output", output), limit) for output in outputs
    }
    shutil.rmtree(bundle)
    return found


def _both_ways(scratch: Path, words: tuple[object, ...], limit: str) -> dict[str, Any]:
    """A run with ``limit`` and one without: seconds and peaks, and whether they gave the same."""
    found: dict[str, Any] = {}
    outs = {"whole": scratch / "whole.npz", "limited": scratch / "limited.npz"}
    for name, more in (("whole", ()), ("limited", ("--memory-limit", limit))):
        ran = measure(twoheads_command(*words, *more, "--out", outs[name]))
        if ran.code:
            raise ProcessFailedError(f"{name}: the run ended with {ran.code}\n{ran.err}")
        found |= {f"{name}_seconds": ran.seconds, f"{name}_peak_bytes": ran.peak_bytes}
    found["same"] = same_arrays(outs["whole"], outs["limited"])
    for out in outs.values():
        out.unlink()
    return found
