"""The long evaluation: three real models over many lengths; writes docs/results/evaluation.json and .md.

``python -m tools.evaluate`` measures everything (an hour or more on two cores); ``--only minilm`` measures one model
again and keeps the other figures. Every measurement is a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tools.evaluation_report import render
from tools.fetch_models import FetchError, fetch
from tools.machine import machine
from tools.measured_process import ProcessFailedError, measure, measure_json, twoheads_command

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "evaluation.json"
PACKAGES = ("numpy", "onnxruntime", "torch", "transformers")
SMOLLM2_LENGTHS = (1, 255, 256, 257, 1000, 4096, 8192)
GEMMA3_LENGTHS = (4096, 8192)
GEMMA3_PLANNED = (1024, 2048, 4096, 8192, 16384, 32768)
MINILM_BLOCK = 64
MINILM_LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 384, 448, 500, 511, 512)

LOAD = """
import json, sys, time
from twoheads.runtime import load
start = time.perf_counter()
load(sys.argv[1], check=sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _folder_digest(folder: Path) -> str:
    """One sha256 over names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _compile(source: Path, bundle: Path, block_size: int) -> dict[str, Any]:
    command = twoheads_command("compile", source, "-o", bundle, "--block-size", block_size, "--json")
    done, summary = measure_json(command)
    weights = (bundle / "engines" / "weights.bin").stat().st_size
    _say(f"  compiled in {done.seconds:.1f} s, peak {done.peak_bytes / weights:.2f} x the weights")
    return {
        "source": summary["source"],
        "architecture": summary["architecture"],
        "block_size": block_size,
        "engines": summary["engines"],
        "seconds": done.seconds,
        "peak_bytes": done.peak_bytes,
        "weights_bytes": weights,
        "bundle_bytes": summary["bytes"],
    }


def _load_times(bundle: Path) -> dict[str, float]:
    """Seconds to load the bundle, by how thoroughly it is checked."""
    command = [sys.executable, "-c", LOAD, str(bundle)]
    return {check: measure_json([*command, check])[1]["seconds"] for check in ("full", "size")}


def _verify(source: Path, bundle: Path, lengths: Iterable[int]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for length in lengths:
        command = twoheads_command("verify", bundle, "--against", source, "--length", length, "--json")
        done, report = measure_json(command, expected=(0, 1))
        verdict = "passed" if report["passed"] else "FAILED"
        _say(f"  N = {length}: {verdict}, error {report['max_abs_error']}, floor {report['noise_floor']}")
        results.append({**report, "process_seconds": done.seconds, "process_peak_bytes": done.peak_bytes})
    return results


def _run(bundle: Path, lengths: Iterable[int], output: str) -> list[dict[str, Any]]:
    """Runs by the runtime alone (no torch in the process): time, memory, and what the plan had said."""
    import numpy as np

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for length in lengths:
            tokens = Path(scratch, "tokens.npy")
            np.save(tokens, np.random.default_rng(length).integers(0, 1000, length))
            out = Path(scratch, "out.npz")
            words = ("run", bundle, "--tokens", tokens, "-o", out, "--output", output, "--check", "size", "--json")
            done, report = measure_json(twoheads_command(*words))
            planned = measure_json(twoheads_command("plan", bundle, "--length", length, "--output", output, "--json"))[
                1
            ]
            _say(f"  N = {length}: {report['seconds']:.2f} s, {report['engine_calls']} calls")
            results.append(
                {
                    "length": length,
                    "blocks": report["blocks"],
                    "output": output,
                    "engine_calls": report["engine_calls"],
                    "formula_calls": report["formula_calls"],
                    "repeated_calls": report["repeated_calls"],
                    "seconds": report["seconds"],
                    "flops": planned["flops"],
                    "planned_peak_bytes": planned["peak_bytes"],
                    "peak_bytes": done.peak_bytes,
                }
            )
    return results


def _calls_by_mask(bundle: Path, lengths: Iterable[int]) -> list[dict[str, Any]]:
    """Attention calls of one layer of each mask, from the plan."""
    layers = measure_json(twoheads_command("inspect", bundle, "--json"))[1]["layers"]
    masks = {layer["name"]: layer["mask"] for layer in layers}
    results: list[dict[str, Any]] = []
    for length in lengths:
        plan = measure_json(twoheads_command("plan", bundle, "--length", length, "--output", "hidden", "--json"))[1]
        calls: dict[str, int] = {}
        for stage in plan["stages"]:
            if stage["name"] in masks:
                calls[masks[stage["name"]]] = stage["calls"]
        results.append({"length": length, "blocks": plan["blocks"], "calls_of_a_layer": calls})
    return results


def _smollm2(source: Path, scratch: Path) -> dict[str, Any]:
    bundle = scratch / "smollm2.bundle"
    compiled = _compile(source, bundle, 256)
    before = _folder_digest(bundle)
    result: dict[str, Any] = {
        "compile": compiled,
        "load_seconds": _load_times(bundle),
        "verify": _verify(source, bundle, SMOLLM2_LENGTHS),
        "run": _run(bundle, SMOLLM2_LENGTHS, "last"),
    }
    after = _folder_digest(bundle)
    return {**result, "digest_before": before, "digest_after": after}


def _gemma3(source: Path, scratch: Path) -> dict[str, Any]:
    bundle = scratch / "gemma3.bundle"
    return {
        "compile": _compile(source, bundle, 256),
        "load_seconds": _load_times(bundle),
        "verify": _verify(source, bundle, GEMMA3_LENGTHS),
        "run": _run(bundle, GEMMA3_LENGTHS, "last"),
        "calls": _calls_by_mask(bundle, GEMMA3_PLANNED),
    }


def _minilm(source: Path, scratch: Path) -> dict[str, Any]:
    import numpy as np

    bundle = scratch / "minilm.bundle"
    compiled = _compile(source, bundle, MINILM_BLOCK)
    tokens = scratch / "tokens.npy"
    np.save(tokens, np.full(513, 100))
    refusal = measure(twoheads_command("run", bundle, "--tokens", tokens, "-o", scratch / "out.npz"))
    return {
        "compile": compiled,
        "load_seconds": _load_times(bundle),
        "verify": _verify(source, bundle, MINILM_LENGTHS),
        "run": _run(bundle, (1, 64, 512), "embedding"),
        "refusal": {"length": 513, "code": refusal.code, "message": refusal.err.replace(str(scratch), "...").strip()},
    }


EVALUATIONS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "smollm2": _smollm2,
    "gemma3": _gemma3,
    "minilm": _minilm,
}


def _failures(results: dict[str, Any]) -> list[str]:
    """What did not come out as it must."""
    wrong: list[str] = []
    for name, model in results["models"].items():
        wrong += [f"{name} at {r['length']}: verify did not pass" for r in model["verify"] if not r["passed"]]
        counted = [*model["verify"], *model["run"]]
        unequal = (r for r in counted if r["engine_calls"] - r["repeated_calls"] != r["formula_calls"])
        wrong += [f"{name} at {r['length']}: calls" for r in unequal]
        if model.get("digest_before") != model.get("digest_after"):
            wrong.append(f"{name}: the bundle changed while it was used")
        if "refusal" in model and model["refusal"]["code"] != 1:
            wrong.append(f"{name}: 513 tokens were not refused")
    return wrong


def _evaluate(names: Sequence[str]) -> int:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    for name in names:
        _say(name)
        source = fetch(name, ROOT / ".cache" / "models")
        scratch = Path(tempfile.mkdtemp(prefix="twoheads-evaluate-"))
        try:
            measured = EVALUATIONS[name](source, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        results["models"][name] = {**measured, "machine": machine(PACKAGES)}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(render(results))
    wrong = _failures(results)
    for line in wrong:
        _say(f"FAILED: {line}")
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the two files, and returns 1 if something did not come out as it must."""
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("--only", choices=sorted(EVALUATIONS), action="append", help="measure only this model")
    options = parser.parse_args(arguments)
    try:
        return _evaluate(options.only or list(EVALUATIONS))
    except (FetchError, ProcessFailedError) as error:
        _say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
