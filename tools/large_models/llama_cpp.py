"""Beside llama.cpp on the same GGUF file, with the memory of either held to a quarter of it: prompt tokens a second."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tools.large_models.bounds import forget_file
from tools.large_models.gguf_file import make_gguf
from tools.large_models.make import SHAPES
from tools.large_models.memory_group import memory_group
from tools.measured_process import measure, measure_json, twoheads_command
from twoheads.graphs.serialization.bundle_format import WEIGHTS
from twoheads.runtime.execution.crew import available_threads

__all__ = ["measure_beside_llama"]

SHARE = 4
"""The memory is held to this part of the file."""

PLANNED = 1.02
"""Of that memory, what our plan may take: it counts more than there is, and the group is what holds."""

CHILD = Path(__file__).with_name("llama_child.py")


def measure_beside_llama(scratch: Path, layers: int, tokens: int, python: str) -> dict[str, Any]:
    """Both read the same prompt of random tokens, in turns, three times.

    Args:
        scratch: Where the file stays, and the bundle while it is needed.
        layers: Of a model of the widths of 1b.
        tokens: Of the prompt.
        python: Has the package llama-cpp-python, which brings llama.cpp.
    """
    shape = replace(SHAPES["1b"], num_hidden_layers=layers)
    model, bundle = scratch / f"1b-{layers}.gguf", scratch / "llama-bundle"
    if not model.exists():
        make_gguf(model, shape)
    shutil.rmtree(bundle, ignore_errors=True)
    measure_json([sys.executable, "-m", "tools.large_models.compile_child", str(model), str(bundle)], show_stderr=True)
    numbers = np.random.default_rng(tokens).integers(300, shape.vocab_size, tokens)
    np.save(scratch / "prompt.npy", numbers)
    (scratch / "prompt.json").write_text(json.dumps(numbers.tolist()), encoding="utf-8")
    limit = model.stat().st_size // SHARE
    rows: dict[str, list[dict[str, Any]]] = {"llama.cpp": [], "ours": []}
    for _ in range(3):
        rows["llama.cpp"].append(_llama(scratch, model, limit, python))
        rows["ours"].append(_ours(scratch, bundle, limit))
    shutil.rmtree(bundle)
    return {"file_bytes": model.stat().st_size, "tokens": tokens, "limit_bytes": limit, "runs": rows}


def _llama(scratch: Path, model: Path, limit: int, python: str) -> dict[str, Any]:
    forget_file(model)
    out = scratch / "answer.json"
    out.unlink(missing_ok=True)
    words = [python, "-P", str(CHILD), str(model), str(scratch / "prompt.json"), str(out), str(available_threads())]
    with memory_group(limit) as within:
        done = measure([*within, *words])
    if done.code:
        return {"code": done.code, "told": done.err.splitlines()[-1:]}
    answer: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {"code": 0, "seconds": done.seconds, "peak_bytes": done.peak_bytes} | answer


def _ours(scratch: Path, bundle: Path, limit: int) -> dict[str, Any]:
    forget_file(bundle / WEIGHTS)
    out = scratch / "last.npz"
    planned = int(PLANNED * limit)
    words = ("run", bundle, "--tokens", scratch / "prompt.npy", "--output", "last", "--memory-limit", planned)
    with memory_group(limit) as within:
        done = measure([*within, *twoheads_command(*words, "--out", out, "--json")])
    if done.code:
        return {"code": done.code, "told": done.err.splitlines()[-3:]}
    with np.load(out) as arrays:
        last = arrays[arrays.files[0]]
    report = json.loads(done.out)
    return {
        "code": 0,
        "seconds": done.seconds,
        "prompt_seconds": report["prepare_seconds"] + report["seconds"],
        "peak_bytes": done.peak_bytes,
        "next_token": int(last.argmax()),
    }
