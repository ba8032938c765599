"""SmolLM2 on local Ray clusters: identical bits, time, and what travels; also with a worker killed midway.

python -m tools.cluster                    # 4,096 tokens, three runs each; writes docs/results/cluster.md
python -m tools.cluster --length 1024 --runs 1 --out /tmp/cluster.md    # a small try
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.fetch_models import fetch
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime import LoadedBundle, Report, Result, load
from twoheads.runtime.cluster import Cluster

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tools" / "data" / "founding_documents.txt"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run: its name, the seconds of its runs, how many of them gave other bits, and the last report."""

    name: str
    seconds: tuple[float, ...]
    different: int
    report: Report


def main() -> int:
    """Measures and writes the page; returns 1 if any run gave other bits than the run in one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--bundle", type=Path, help="one of SmolLM2 in blocks of 256; compiled if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cluster.md")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle
        if path is None:
            path = Path(folder) / "smollm2.bundle"
            write_bundle(compile_model(fetch("smollm2", options.models), block_size=256), path)
        rows = _measure(path, options.length, options.runs)
    options.out.write_text(_page(rows, options.length, options.runs), encoding="utf-8")
    return int(any(row.different for row in rows))


def _measure(path: Path, length: int, runs: int) -> list[Row]:
    one, two = load(path, threads=1), load(path, threads=2)
    if one.tokenizer is None:
        raise SystemExit("the bundle has no tokenizer")
    tokens = np.asarray(one.tokenizer.encode(TEXT.read_text(encoding="utf-8")))[:length]
    if len(tokens) < length:
        raise SystemExit(f"the text has {len(tokens)} tokens, fewer than {length}")
    one.run(tokens[:300], output="hidden")
    expected = np.asarray(one.run(tokens, output="hidden").array)
    rows = [_row("one process, 1 thread", partial(one.run, tokens, output="hidden"), expected, runs)]
    two.run(tokens[:300], output="hidden")
    rows.append(_row("one process, 2 threads", partial(two.run, tokens, output="hidden"), expected, runs))
    for workers in (1, 2):
        with Cluster(f"local:{workers}", threads=1) as cluster:
            cluster.run(one, tokens[:300], output="hidden")
            name = f"`--cluster local:{workers}`, 1 thread each"
            rows.append(_row(name, partial(cluster.run, one, tokens, output="hidden"), expected, runs))
            if workers == 2:
                name = "the same, a worker killed at half of the calls"
                rows.append(_row(name, partial(_killed, cluster, one, tokens), expected, runs))
    return rows


def _row(name: str, run: Callable[[], Any], expected: npt.NDArray[Any], runs: int) -> Row:
    results: list[Result] = [run() for _ in range(runs)]
    different = sum(not np.array_equal(np.asarray(result.array), expected) for result in results)
    row = Row(name, tuple(result.report.seconds for result in results), different, results[-1].report)
    sys.stderr.write(f"{name}: {statistics.median(row.seconds):.1f} s, {different} of {runs} differ\n")
    return row


def _killed(cluster: Cluster, bundle: LoadedBundle, tokens: npt.NDArray[Any]) -> Any:
    """A run in which SIGKILL hits a worker at half of the calls; workers lost before are started again first."""
    cluster.run(bundle, tokens[:300], output="hidden")
    victim = cluster.processes[1]

    def kill(done: int, total: int) -> None:
        nonlocal victim
        if victim and done >= total / 2:
            os.kill(victim, signal.SIGKILL)
            victim = 0

    return cluster.run(bundle, tokens, output="hidden", progress=kill)


def _page(rows: list[Row], length: int, runs: int) -> str:
    bits = "all runs gave the same bits" if not any(row.different for row in rows) else "SOME RUNS GAVE OTHER BITS"
    lines = [
        "# On a Ray cluster",
        "",
        f"By `python -m tools.cluster`, on {len(os.sched_getaffinity(0))} cores of one machine, {date.today()}:",
        f"SmolLM2-135M, {length} tokens in blocks of 256, hidden states of all tokens, medians of {runs} runs.",
        f"Of {sum(len(row.seconds) for row in rows)} runs, {bits}.",
        "",
        "| run | seconds | other bits | calls | lost | repeated | read, MB | copied, MB | memory of a worker, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        done = row.report.cluster
        cells = [""] * 5
        if done is not None:
            moved = (f"{done.read_bytes / 1e6:.0f}", f"{done.copied_bytes / 1e6:.0f}")
            cells = [f"{done.lost_workers}", f"{done.recomputed_calls}", *moved, f"{done.worker_peak_bytes / 1e6:.0f}"]
        numbers = [f"{statistics.median(row.seconds):.2f}", f"{row.different}", f"{row.report.engine_calls}", *cells]
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + EXPLANATION


EXPLANATION = """

*Read* is what workers read that others, or the driver, had written: keys and values of other workers' blocks, and the
tokens. *Copied* are the second copies of what later layers need, made after every attention, so that the loss of a
worker costs a layer and not the run. *Repeated* are calls that ended and were made again; those that the lost worker
had not reported are in no column. Starting Ray, opening the bundle and its engines are not in the seconds. Workers and
Ray's own processes share the machine's cores: two workers here show what a cluster costs, not what it gains.
"""


if __name__ == "__main__":
    sys.exit(main())
