"""Compiles and runs one model of random weights in processes of their own, and compares it with the reference."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.large_models.bounds import forget_file, product_seconds, reading_seconds
from tools.large_models.job import killed_and_resumed, same_arrays
from tools.large_models.make import SHAPES, make_config, make_model
from tools.large_models.reference import bundle_weights, folder_weights, reference_hidden
from tools.measured_process import measure, measure_json, twoheads_command
from twoheads.graphs.serialization.bundle_format import WEIGHTS

__all__ = ["Case", "measure_case", "measure_plan"]

VERIFIED = 64
"""Tokens by which a bundle is compared layer by layer."""


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
    weights = bundle / WEIGHTS
    _, opened = measure_json([sys.executable, "-m", "tools.large_models.open_child", str(bundle)])
    reading, products = reading_seconds(weights), product_seconds(bundle, case.tokens)
    forget_file(weights)
    words: list[object] = ["run", bundle, "--tokens", tokens, "--output", "hidden", "--memory-limit", case.limit]
    done = measure(twoheads_command(*words, "--out", out, "--json"), show_stderr=True)
    if done.code:
        return {"run_code": done.code}
    return {
        "run_code": 0,
        "run_seconds": done.seconds,
        "run_cpu_seconds": done.cpu_seconds,
        "run_peak_bytes": done.peak_bytes,
        "open_seconds": opened["seconds"],
        "reading_seconds": reading,
        "product_seconds": products,
        **_resumed(scratch, words, out, done.seconds),
        "distance": _distance(model, bundle, case, numbers, out),
        **_verified(model, bundle),
    }


def _verified(model: Path, bundle: Path) -> dict[str, Any]:
    """What ``verify --streamed`` says, of few tokens: all weights are used by each."""
    words = ("verify", bundle, "--against", model, "--streamed", "--length", VERIFIED, "--json")
    done, report = measure_json(twoheads_command(*words), expected=(0, 1), show_stderr=True)
    layers = [check for check in report["checks"] if check["name"] == "layer"]
    return {
        "verify_passed": report["passed"],
        "verify_layers": len(layers),
        "verify_worst_ratio": max(check["ratio"] for check in report["checks"]),
        "verify_seconds": done.seconds,
        "verify_peak_bytes": done.peak_bytes,
    }


def _resumed(scratch: Path, words: list[object], out: Path, seconds: float) -> dict[str, Any]:
    job, other = scratch / "job", scratch / "resumed.npz"
    shutil.rmtree(job, ignore_errors=True)
    try:
        found = killed_and_resumed(words, job, other, after=seconds / 2)
        return found | {"job_same": found["job_code"] == 0 and same_arrays(out, other)}
    finally:
        shutil.rmtree(job, ignore_errors=True)
        other.unlink(missing_ok=True)


def _distance(model: Path, bundle: Path, case: Case, numbers: npt.NDArray[np.int64], out: Path) -> float:
    """The largest difference from the reference, as a share of its largest magnitude."""
    with np.load(out) as arrays:
        hidden = arrays[arrays.files[0]].reshape(case.tokens, -1)
    read = folder_weights(model) if case.weights == "float32" else bundle_weights(bundle)
    expected = reference_hidden(model, read, numbers)
    return float(np.abs(hidden - expected).max() / np.abs(expected).max())


def measure_plan(scratch: Path, size: str, tokens: int, limit: str) -> dict[str, Any]:
    """What ``plan`` says of the whole model of ``size``, of which there is the configuration alone."""
    folder = scratch / f"{size}-config"
    shutil.rmtree(folder, ignore_errors=True)
    make_config(folder, SHAPES[size])
    words = ("plan", folder, "--length", tokens, "--output", "hidden", "--memory-limit", limit, "--json")
    done, plan = measure_json(twoheads_command(*words))
    kept = ("engine_calls", "flops", "peak_bytes", "memory", "spill")
    return {
        "size": size,
        "tokens": tokens,
        "limit": limit,
        "plan_seconds": done.seconds,
        "plan_peak_bytes": done.peak_bytes,
        "plan": {key: plan[key] for key in kept if key in plan},
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
