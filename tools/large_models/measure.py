"""Compiles and runs one model of random weights in processes of their own, and compares it with the reference."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tools.large_models.make import SHAPES, make_model
from tools.large_models.reference import bundle_weights, folder_weights, reference_hidden
from tools.measured_process import measure, measure_json, twoheads_command

__all__ = ["Case", "measure_case"]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured.

    Attributes:
        size: A name of :data:`~tools.large_models.make.SHAPES`.
        layers: How many of its layers the model has.
        weights: ``float32``, ``int8`` or ``int4``.
        tokens: Of the input; 0 for no run.
        limit: Of the run's memory, as the command line reads it.
    """

    size: str
    layers: int
    weights: str
    tokens: int
    limit: str

    @property
    def name(self) -> str:
        """For the page."""
        return f"{self.size}, {self.layers} layers, {self.weights}"


def measure_case(scratch: Path, case: Case) -> dict[str, Any]:
    """Makes the model in ``scratch`` unless it is there, compiles and runs it; the bundle is removed again."""
    shape = replace(SHAPES[case.size], num_hidden_layers=case.layers)
    model = scratch / f"{case.size}-{case.layers}"
    if not model.exists():
        make_model(model, shape)
    bundle = scratch / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    words = ["-m", "tools.large_models.compile_child", str(model), str(bundle), case.weights]
    done, phases = measure_json([sys.executable, *words], show_stderr=True)
    found: dict[str, Any] = {
        **asdict(case),
        "layer_bytes": shape.layer_bytes,
        "source_bytes": _bytes(model),
        "bundle_bytes": _bytes(bundle),
        "compile_seconds": done.seconds,
        "compile_cpu_seconds": done.cpu_seconds,
        "compile_peak_bytes": done.peak_bytes,
        "phases": phases,
    }
    try:
        return found | (_run(scratch, model, bundle, case) if case.tokens else {})
    finally:
        shutil.rmtree(bundle)


def _run(scratch: Path, model: Path, bundle: Path, case: Case) -> dict[str, Any]:
    tokens, out = scratch / "tokens.npy", scratch / "out.npz"
    numbers = np.random.default_rng(case.tokens).integers(0, SHAPES[case.size].vocab_size, case.tokens)
    np.save(tokens, numbers)
    words = ("run", bundle, "--tokens", tokens, "--output", "hidden", "--out", out)
    done = measure(twoheads_command(*words, "--memory-limit", case.limit, "--json"), show_stderr=True)
    if done.code:
        return {"run_code": done.code}
    with np.load(out) as arrays:
        hidden = arrays[arrays.files[0]].reshape(case.tokens, -1)
    read = folder_weights(model) if case.weights == "float32" else bundle_weights(bundle)
    expected = reference_hidden(model, read, numbers)
    distance = float(np.abs(hidden - expected).max() / np.abs(expected).max())
    return {
        "run_code": 0,
        "run_seconds": done.seconds,
        "run_cpu_seconds": done.cpu_seconds,
        "run_peak_bytes": done.peak_bytes,
        "distance": distance,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
