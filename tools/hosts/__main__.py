"""Exports two real models and runs each file in five hosts; writes docs/results/hosts.json and hosts.md.

``python -m tools.hosts`` compiles MiniLM and SmolLM2, exports each as one ONNX file, and runs it at three lengths in
Python with ONNX Runtime alone, C++, Node and headless Chromium (WASM, and WebGPU, which Chromium's software computes
where there is no GPU), beside this runtime and the original. ``--models``, ``--hosts`` and ``--lengths`` measure less,
and keep what the file says of the rest. ``--page`` writes the page alone. What is not installed is told.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.devices.original import CASES, load_original
from tools.hosts.beside import Beside, measure_beside
from tools.hosts.hosts import HOSTS, HostError
from tools.hosts.page import render
from tools.machine import machine
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.one_file.export import export_one_file

__all__ = ["main"]

logger = logging.getLogger("tools.hosts")

PAGE = Path(__file__).parents[2] / "docs" / "results" / "hosts.md"
OUTPUTS = {"minilm": "embedding", "smollm2": "last"}
LENGTHS = {"minilm": (16, 129, 500), "smollm2": (16, 257, 1024)}
BLOCK = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for and writes the page; exit code 1 where a host failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=list(HOSTS))
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens; by default three a model")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools").setLevel(logging.INFO)
    file = options.out.with_suffix(".json")
    figures: dict[str, Any] = {"models": {}}
    if file.exists():
        figures = json.loads(file.read_text(encoding="utf-8"))
    failed = False
    for model in [] if options.page else options.models:
        former = _former(figures["models"].get(model, {"hosts": {}}))
        found = _measure(model, options.hosts, options.lengths or LENGTHS[model])
        failed |= any("problem" in host for host in found["hosts"].values())
        found["hosts"] = former | found["hosts"]
        figures["models"][model] = found
        figures["machine"] = machine(("onnxruntime", "torch"))
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    options.out.write_text(render(figures), encoding="utf-8")
    return int(failed)


def _former(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured before of each host, with the lengths that it was measured at."""
    return {host: {"lengths": found["lengths"]} | of for host, of in found["hosts"].items()}


def _measure(model: str, hosts: Sequence[str], lengths: Sequence[int]) -> dict[str, Any]:
    original = load_original(model, max(lengths))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bundle = write_bundle(compile_model(original.path, block_size=BLOCK), scratch / "bundle")
        exported = export_one_file(bundle, scratch / f"{model}.onnx", outputs=[OUTPUTS[model]])
        inputs = [original.tokens[:length] for length in lengths]
        beside = [measure_beside(bundle, original.path, tokens, OUTPUTS[model]) for tokens in inputs]
        sizes = [path.stat().st_size for path in (exported.file, exported.weights) if path is not None]
        found: dict[str, Any] = {
            "lengths": list(lengths),
            "output": OUTPUTS[model],
            "block_size": BLOCK,
            "file_bytes": sizes[0],
            "weights_bytes": sum(sizes[1:]),
            "floor": [one.floor for one in beside],
            "runtime": {"seconds": [one.seconds for one in beside], "errors": [one.error for one in beside]},
            "hosts": {},
        }
        for host in hosts:
            found["hosts"][host] = _through(
                host, exported.file, [tokens.tolist() for tokens in inputs], beside, scratch
            )
            logger.info("%s, %s: %s", model, host, found["hosts"][host])
    return found


def _through(host: str, file: Path, inputs: list[list[int]], beside: Sequence[Beside], scratch: Path) -> dict[str, Any]:
    try:
        runs = HOSTS[host](file, inputs, scratch)
    except HostError as error:
        return {"problem": " ".join(str(error).split())}
    return {
        "lengths": [len(tokens) for tokens in inputs],
        "seconds": [run.seconds for run in runs],
        "errors": [relative_error(run.values, one.expected) for run, one in zip(runs, beside, strict=True)],
    }


if __name__ == "__main__":
    sys.exit(main())
