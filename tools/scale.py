"""Long inputs on a small machine: time and memory by length with values in files, and runs killed at random moments.

python -m tools.scale lengths 65536 131072 1048576    # a windowed model of 4 layers, width 256
python -m tools.scale kills 30                        # SIGKILL; every resume must end in the same bits
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tools.measured_process import measure, measure_json, twoheads_command
from tools.small_transformer import SmallTransformer
from twoheads.compiler import compile_model
from twoheads.export import write_bundle

KILL_LENGTHS = (4_000, 12_000, 30_000)


def main() -> int:
    """Runs one of the two, and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    lengths = commands.add_parser("lengths", help="time and memory by length")
    lengths.add_argument("lengths", type=int, nargs="+")
    lengths.add_argument("--memory-limit", default="1GB")
    lengths.add_argument("--mask", default="causal & window(512, 0)")
    lengths.add_argument("--layers", type=int, default=4)
    kills = commands.add_parser("kills", help="runs killed at random moments")
    kills.add_argument("count", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        root = Path(folder)
        if options.command == "kills":
            return _kill(root, options.count)
        _measure(root, options.lengths, options.memory_limit, options.mask, options.layers)
    return 0


def _bundle(root: Path, mask: str, layers: int) -> Path:
    model = SmallTransformer(mask, layers=layers, heads=4, head_dim=64)
    write_bundle(
        compile_model(model, block_size=256, example_inputs=(torch.zeros(1, 40, dtype=torch.long),)), root / "bundle"
    )
    return root / "bundle"


def _tokens(root: Path, length: int) -> Path:
    path = root / f"{length}.npy"
    np.save(path, np.random.default_rng(length).integers(0, 97, length))
    return path


def _measure(root: Path, lengths: list[int], limit: str, mask: str, layers: int) -> None:
    bundle = _bundle(root, mask, layers)
    print("| tokens | seconds | microseconds a token | peak memory, MB | spilled, MB |\n|--:|--:|--:|--:|--:|")
    for length in lengths:
        words = ("run", bundle, "--tokens", _tokens(root, length), "--out", root / "out.npz", "--output", "hidden")
        spill = ("--memory-limit", limit, "--spill", root / "job", "--json")
        _, report = measure_json(twoheads_command(*words, *spill), show_stderr=True)
        seconds, spilled = report["seconds"], report["spilled_bytes"] / 1e6
        numbers = f"{seconds / length * 1e6:.0f} | {report['peak_bytes'] / 1e6:.0f} | {spilled:.0f}"
        print(f"| {length} | {seconds:.1f} | {numbers} |", flush=True)


def _kill(root: Path, count: int) -> int:
    """Kills runs until ``count`` were hit; returns 1 if a resumed run ends in other bits than an undisturbed one."""
    bundle, moments = _bundle(root, "causal & window(512, 0)", 2), random.Random(7)  # noqa: S311 - no secret
    killed = finished = wrong = 0
    while killed < count:
        length = KILL_LENGTHS[finished % len(KILL_LENGTHS)]
        words = ("run", bundle, "--tokens", _tokens(root, length), "--output", "hidden")
        whole = measure(twoheads_command(*words, "--out", root / "whole.npz"))
        out = root / "out.npz"
        out.unlink(missing_ok=True)
        while not out.exists():
            resume = (root / "job" / "job.json").exists() and not _is_finished(root)
            start = ("run", "--resume", root / "job") if resume else (*words, "--out", out, "--spill", root / "job")
            after = moments.uniform(0, whole.seconds * 1.2) if killed < count else None
            code = _run_for(twoheads_command(*start), after)
            if code not in (0, -9):
                raise SystemExit(f"a run ended with {code}")
            killed += code == -9
        finished += 1
        wrong += not np.array_equal(np.load(out)["hidden"], np.load(root / "whole.npz")["hidden"])
    print(f"{killed} kills, {finished} runs finished after them, {wrong} with other bits than an undisturbed run")
    return int(wrong > 0)


def _is_finished(root: Path) -> bool:
    _, status = measure_json(twoheads_command("status", root / "job", "--json"))
    return bool(status["state"] == "finished")


def _run_for(command: list[str], seconds: float | None) -> int:
    """The exit code of ``command``, killed after ``seconds`` if it takes longer; -9 then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None:
        if seconds is not None and time.monotonic() - began > seconds:
            process.kill()
        time.sleep(0.01)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
