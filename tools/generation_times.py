"""What `plan --generate --device` foretells of a bundle's prompts, and what came of it.

python -m tools.generation_times BUNDLE --prompt 128 2000 --new 64

Measures the engines and the steps of the bundle, foretells every prompt from them, and runs it with its engines open.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.machine import machine
from twoheads.graphs.prediction.generation import predict_generation
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.measurement.profiler import profile_bundle
from twoheads.runtime.measurement.step_meter import with_step_times

__all__ = ["compare", "main"]


def compare(path: str, prompts: Sequence[int], new: int, threads: int) -> list[dict[str, Any]]:
    """The seconds of each prompt, foretold and measured."""
    bundle = load(path, threads=threads)
    profile = with_step_times(profile_bundle(path, threads=threads), path, lambda _name: None)
    steps = bundle.generation.steps
    rows: list[dict[str, Any]] = []
    for length in prompts:
        foretold = predict_generation(steps, profile, length, new, threads)
        first, later = _measured(bundle, length, new)
        row = {"prompt_tokens": length, "new_tokens": new, "first_token_seconds": [foretold.first_token_seconds, first]}
        rows.append(row | {"later_seconds": [foretold.later_seconds, later]})
    return rows


def _measured(bundle: LoadedBundle, length: int, new: int) -> tuple[float, float]:
    """Seconds until the first token, and for the others."""
    classes = bundle.generation.steps.tokens.limit or 2
    prompt = [int(token) for token in np.random.default_rng(0).integers(0, classes, length)]
    options: dict[str, Any] = {"do_sample": False, "ignore_eos": True, "num_beams": 1}
    for _ in bundle.stream(prompt, max_new_tokens=2, **options):  # engines are open, as in what is foretold
        pass
    began, times = time.perf_counter(), list[float]()
    for _ in bundle.stream(prompt, max_new_tokens=new, **options):
        times.append(time.perf_counter() - began)
    return times[0], times[-1] - times[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.generation_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle")
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 2000])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    rows = compare(given.bundle, given.prompt, given.new, given.threads)
    sys.stdout.write(json.dumps({"rows": rows, "machine": machine(("numpy", "onnxruntime"))}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
