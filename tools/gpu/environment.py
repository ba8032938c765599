"""An environment with what the steps need. It sees what this Python has and gets what that lacks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
from pathlib import Path

from tools.gpu.runner import Outcome

__all__ = ["NEEDED", "prepare"]

NEEDED = {
    "onnx": "onnx>=1.19",
    "onnxscript": "onnxscript>=0.5.4",
    "onnx-ir": "onnx-ir>=0.1.12",
    "gguf": "gguf>=0.17",
    "psutil": "psutil>=6.0",
    "safetensors": "safetensors>=0.5",
    "tokenizers": "tokenizers>=0.21",
    "typer": "typer>=0.15",
    "rich": "rich>=13.7",
    "transformers": "transformers>=5.0",
    "onnxruntime-gpu": "onnxruntime-gpu>=1.22",
    "torch": "torch>=2.9",
    "accelerate": "accelerate>=1.2",
    "tensorrt": "tensorrt>=10",
    "polygraphy": "polygraphy>=0.49",
}
"""Distributions as pip takes them, gigabytes last: where the network is slow, they keep nothing else out."""

_LACKING = """
import importlib.metadata as m, json, sys
lacking = []
for name in sys.argv[1:]:
    try:
        m.version(name)
    except m.PackageNotFoundError:
        lacking.append(name)
print(json.dumps(lacking))
"""


def prepare(root: Path, wheels: Path | None, seconds: float) -> tuple[Path, Outcome]:
    """The Python of the environment, or this one where none can be made, and what came of it.

    Args:
        root: The checkout.
        wheels: A folder of wheels, instead of the network.
        seconds: The most that it may take.
    """
    began = time.monotonic()
    folder = root / ".cache" / "gpu" / "environment"
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            venv.create(folder, system_site_packages=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return Path(sys.executable), Outcome("install", time.monotonic() - began, problem=f"no environment: {error}")
    failed: list[str] = []
    # One at a time: what can't be had leaves the others alone.
    for name in (lacking := _lacking(python)):
        left = seconds - (time.monotonic() - began)
        problem = "the time was over" if left <= 0 else _install(python, NEEDED[name], wheels, left)
        if problem is not None:
            failed.append(f"{name} ({problem})")
    took = time.monotonic() - began
    facts = {"packages": f"{len(NEEDED) - len(lacking)} were there, {len(lacking) - len(failed)} were installed"}
    problem = f"could not install {', '.join(failed)}" if failed else None
    return python, Outcome("install", took, facts, problem=problem)


def _lacking(python: Path) -> list[str]:
    done = subprocess.run([str(python), "-c", _LACKING, *NEEDED], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def _install(python: Path, requirement: str, wheels: Path | None, seconds: float) -> str | None:
    """Why it could not be installed, or ``None``."""
    source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-compile", *source]
    command = [str(python), "-m", "pip", "install", *options, requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "the time was over"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"pip: {done.returncode}"]
    return lines[-1].removeprefix("ERROR: ")[:120]
