"""The plan against real runs: predicted and measured time and peak memory; writes docs/results/planning.*.

``python -m tools.planning`` profiles the bundles on this machine, runs them at several lengths with 1 and 2 threads
and, where Ray is installed, on 1 and 2 local workers (a quarter of an hour on two idle cores). ``--quick`` tries it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tools.fetch_models import FetchError, fetch
from tools.machine import machine
from tools.measured_process import ProcessFailedError, measure_json, twoheads_command
from tools.planning_report import draw, render
from twoheads.graphs.prediction.device_profile import DeviceProfile, Network, profile_text, read_profile

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "planning.json"
THREADS = (1, 2)
POLICIES = ("window:4096+sinks:4", "average:samples=4+window:512+sinks:4")
SCALED_LENGTH, SCALED_WORKERS = 1_000_000, "1..1024"


@dataclass(frozen=True, slots=True)
class Case:
    """One model at one block size, and the lengths at which it is run; ``cluster`` those on local workers."""

    model: str
    block_size: int
    lengths: tuple[int, ...]
    cluster: tuple[int, ...] = ()


CASES = (
    Case("smollm2", 256, (1024, 2048, 4096, 8192), (4096, 8192)),
    Case("smollm2", 128, (1024, 2048, 4096, 8192)),
    Case("gemma3", 256, (4096, 8192)),
)
QUICK = (Case("smollm2", 256, (512, 1024), (1024,)),)


class _Measuring:
    """One case's bundle and its runs.

    Args:
        case: What is measured.
        scratch: A folder for tokens, profiles and, unless it is there already, the bundle.
        repeats: Runs of each kind; their medians count.
    """

    def __init__(self, case: Case, scratch: Path, repeats: int) -> None:
        self._case, self._scratch, self._repeats = case, scratch, repeats
        self.bundle = scratch / f"{case.model}-{case.block_size}.bundle"
        if not self.bundle.exists():
            source = fetch(case.model, ROOT / ".cache" / "models")
            words = ("compile", source, "-o", self.bundle, "--block-size", case.block_size, "--json")
            measure_json(twoheads_command(*words))
        self.profile = scratch / f"{case.model}-{case.block_size}.json"
        measure_json(twoheads_command("profile", self.bundle, "-o", self.profile, "--threads", max(THREADS), "--json"))

    def runs(self) -> list[dict[str, Any]]:
        """Every length with every number of threads: what was predicted and what was measured."""
        wanted = [(length, threads) for length in self._case.lengths for threads in THREADS]
        measured: dict[tuple[int, int], list[dict[str, Any]]] = {key: [] for key in wanted}
        for _ in range(self._repeats):
            for length, threads in wanted:
                measured[length, threads].append(self._run(length, "--threads", threads))
        return [self._compared(length, threads, measured[length, threads]) for length, threads in wanted]

    def workers(self) -> list[dict[str, Any]]:
        """The same on local workers of one thread each, where Ray is installed."""
        if importlib.util.find_spec("ray") is None:
            return []
        round_seconds = self._round_seconds()
        results: list[dict[str, Any]] = []
        for length in self._case.cluster:
            for workers in (1, 2):
                measured = [self._run(length, *_on(workers)) for _ in range(self._repeats)]
                plan = self._plan_workers(length, workers, round_seconds)
                rounds = round_seconds * measured[0]["rounds"] if workers == 1 else 0.0  # several count them already
                counted = measured[0]["cluster"]
                figures = {
                    "length": length,
                    "workers": workers,
                    "round_seconds": round_seconds,
                    "predicted_seconds": plan["seconds"] + rounds,
                    "predicted_peak_bytes": plan["memory_bytes"],
                    "predicted_moved_bytes": round((plan["sent_bytes"] + plan["copied_bytes"]) * workers),
                    "seconds": _median(measured, "seconds"),
                    "peak_bytes": max(run["cluster"]["worker_peak_bytes"] for run in measured),
                    "moved_bytes": counted["read_bytes"] + counted["copied_bytes"],
                }
                results.append(figures)
                took = f"{figures['predicted_seconds']:.2f} s, took {figures['seconds']:.2f} s"
                _say(f"  N = {length}, {workers} workers: {took}")
        return results

    def _round_seconds(self) -> float:
        """What a stage of one block on one worker takes beyond its calls: its start, and its way through Ray."""
        length = self._case.block_size
        measured = [self._run(length, *_on(1)) for _ in range(self._repeats)]
        beyond = _median(measured, "seconds") - self._plan_workers(length, 1, 1.0)["seconds"]
        return float(max(beyond / measured[0]["rounds"], 1e-4))

    def scaling(self) -> dict[str, Any]:
        """A long input on up to 1024 machines like this one, by policy."""
        words: list[object] = ["plan", self.bundle, "-n", SCALED_LENGTH, "--output", "last", "--device", self.profile]
        words += ["--workers", SCALED_WORKERS, "--json"]
        for policy in POLICIES:
            words += ["--compare", policy]
        done, plan = measure_json(twoheads_command(*words))
        return {"model": self._case.model, "seconds": done.seconds, **plan}

    def _run(self, length: int, *options: object) -> dict[str, Any]:
        """The report of a run in a process of its own, and the peak memory of that process."""
        tokens = self._scratch / f"{length}.npy"
        np.save(tokens, np.random.default_rng(length).integers(0, 30_000, length))
        words = ("run", self.bundle, "--tokens", tokens, "-o", self._scratch / "out.npz", "--output", "last")
        done, report = measure_json(twoheads_command(*words, "--check", "size", "--json", *options))
        return {**report, "peak_bytes": done.peak_bytes}

    def _compared(self, length: int, threads: int, measured: list[dict[str, Any]]) -> dict[str, Any]:
        words = ("plan", self.bundle, "-n", length, "--output", "last", "--device", self.profile, "--threads", threads)
        _, plan = measure_json(twoheads_command(*words, "--json"))
        figures = {
            "length": length,
            "threads": threads,
            "predicted_seconds": plan["device"]["seconds"],
            "predicted_open_seconds": plan["device"]["open_seconds"],
            "predicted_peak_bytes": plan["peak_bytes"],
            "seconds": _median(measured, "seconds"),
            "prepare_seconds": _median(measured, "prepare_seconds"),
            "peak_bytes": _median(measured, "peak_bytes"),
            "repeats": len(measured),
        }
        _say(
            f"  N = {length}, {threads} threads: {figures['predicted_seconds']:.2f} s, took {figures['seconds']:.2f} s"
        )
        return figures

    def _plan_workers(self, length: int, workers: int, round_seconds: float) -> dict[str, Any]:
        """The plan of workers that share this machine: its memory is their network, and they slow each other down."""
        shared = self._scratch / "shared.json"
        shared.write_text(profile_text(_shared(read_profile(self.profile), workers, round_seconds)), encoding="utf-8")
        words = ("plan", self.bundle, "-n", length, "--output", "last", "--device", shared, "--threads", 1)
        _, plan = measure_json(twoheads_command(*words, "--workers", workers, "--json"))
        figures: dict[str, Any] = plan["workers"][0]
        return figures


def _shared(profile: DeviceProfile, workers: int, round_seconds: float) -> DeviceProfile:
    """The profile of one of ``workers`` processes on the machine: its calls are as slow as those of as many threads."""
    engines = tuple(
        replace(times, call_seconds={**times.call_seconds, "1": times.call_seconds[str(workers)]})
        for times in profile.engines
    )
    network = Network(profile.copy_bytes_per_second, round_seconds)
    return replace(profile, engines=engines, network=network)


def _on(workers: int) -> tuple[object, ...]:
    """The options of a run on local workers of one thread each."""
    return "--cluster", f"local:{workers}", "--threads", 1


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _measure(options: argparse.Namespace, scratch: Path) -> None:
    """Measures one case after the other; what is finished is in the file, whatever happens to the next."""
    found = machine(("numpy", "onnxruntime", "ray"))
    results: dict[str, Any] = {"machine": found, "load": os.getloadavg()[0], "cases": [], "scaling": None}
    for case in QUICK if options.quick else CASES:
        _say(f"{case.model}, blocks of {case.block_size}")
        measuring = _Measuring(case, scratch, 1 if options.quick else options.repeats)
        figures: dict[str, Any] = {"model": case.model, "block_size": case.block_size, "runs": measuring.runs()}
        figures["workers"] = [] if options.without_cluster else measuring.workers()
        results["cases"].append(figures)
        results["scaling"] = results["scaling"] or measuring.scaling()
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.planning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case, once")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, whose medians count")
    parser.add_argument("--without-cluster", action="store_true", help="leave the local workers out")
    parser.add_argument("--scratch", type=Path, help="a folder in which bundles are kept for the next time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the .json file; .md and pictures lie beside it")
    parser.add_argument("--render", action="store_true", help="write the page again from the .json file")
    options = parser.parse_args(arguments)
    try:
        if not options.render:
            with tempfile.TemporaryDirectory() as temporary:
                _measure(options, options.scratch or Path(temporary))
        results = json.loads(options.out.read_text(encoding="utf-8"))
        options.out.with_suffix(".md").write_text(render(results), encoding="utf-8")
        draw(results, options.out.with_suffix(".png"))
    except (FetchError, ProcessFailedError) as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
