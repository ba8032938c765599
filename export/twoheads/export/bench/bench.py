"""How fast a bundle runs here, beside how fast it could be: time, memory and the share of the matrix products' peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt

from twoheads.export.engines.run_inputs import verify_inputs, verify_lengths
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import InputError
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.registry import open_backend, open_host_backend
from twoheads.runtime.execution.crew import available_threads
from twoheads.runtime.measurement.timed_backend import Breakdown, TimedBackend, TimedRun, run_timed

__all__ = ["BenchReport", "BenchRow", "bench"]


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One length.

    Attributes:
        length: Tokens.
        seconds: From the call to the result, the median of the repeats. all_seconds: Of each repeat.
        tokens_per_second: At the median.
        engine_calls: Of one run.
        flops: Floating-point operations of the run's matrix products, by the schedule.
        flops_per_second: At the median. share_of_peak: That, of the report's ``peak_flops_per_second``.
        peak_bytes: The process's memory high-water mark after a run of this length and of all shorter ones.
        planned_peak_bytes: What the schedule had said.
        breakdown: Where the time of the median run went.
    """

    length: int
    seconds: float
    all_seconds: tuple[float, ...]
    tokens_per_second: float
    engine_calls: int
    flops: int
    flops_per_second: float
    share_of_peak: float
    peak_bytes: int
    planned_peak_bytes: int
    breakdown: Breakdown


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All lengths of one bundle. ``twoheads.graphs.serialization.json_codec.to_json`` turns it into JSON.

    Attributes:
        name: The program's.
        output: What was computed.
        block_size: ``M``.
        key_tile: Tokens of a key tile.
        threads: Workers.
        repeats: Measured runs of each length, after one that opens the engines.
        peak_flops_per_second: Of float32 matrix products on as many threads, the median of measurements before each
            repeat.
        rows: By length, ascending.
    """

    name: str
    output: str
    block_size: int
    key_tile: int
    threads: int
    repeats: int
    peak_flops_per_second: float
    rows: tuple[BenchRow, ...]


@dataclass(slots=True)
class _Length:
    """What is known of one length while measuring goes on."""

    lengths: dict[str, int]
    inputs: dict[str, npt.NDArray[Any]]
    peak_bytes: int
    runs: list[TimedRun] = field(default_factory=list)


def bench(
    bundle: str | Path,
    *,
    lengths: Sequence[int],
    output: str = "hidden",
    repeats: int = 3,
    threads: int | None = None,
    backend: str = "onnxruntime",
    precision: str = "f32",
    tune: str = "off",
    progress: Progress | None = None,
) -> BenchReport:
    """Runs ``bundle`` at several lengths in turns, and measures the peak of matrix products in between.

    Args:
        bundle: Its folder.
        lengths: Tokens of the inputs (of every input, where a model has several).
        output: ``hidden``, ``logits``, ``last`` or ``embedding``; without logits, the whole model but its head.
        repeats: Measured runs of each length.
        threads: Workers; ``None`` for every processor.
        backend: What runs the engines; the peak is that of ONNX Runtime in any case.
        precision: In what the backend multiplies.
        tune: How key tiles are chosen, as :func:`twoheads.runtime.load` takes it; by default as ``run`` does, not.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        BundleError: The bundle is damaged.
        InputError: A length is not one that the model takes, or a number is not positive.
    """
    # Loading onnx takes memory, which must not count as the run's: so it waits until the memory was measured.
    if repeats < 1 or not lengths:
        raise InputError("bench", f"{repeats} repeats of {len(lengths)} lengths", "give at least one of each")
    report = progress or silent
    report("load the bundle")
    workers = threads or available_threads()
    timed = TimedBackend(open_host_backend(backend, precision=precision, threads=workers))
    loaded = load(bundle, backend=timed, precision=precision, threads=workers, tune=tune)
    plans = [verify_lengths(loaded.program, length) for length in sorted(set(lengths))]
    for plan in plans:  # a length that the model can't take is told before minutes are spent
        loaded.schedule(plan, output)
    measured: list[_Length] = []
    for at, plan in enumerate(plans):
        report("open the engines", at, len(plans))
        inputs = verify_inputs(loaded, plan, text=None, tokens=None)
        measured.append(_Length(plan, inputs, loaded.run(inputs, output).report.peak_bytes))
    from twoheads.export.bench.matrix_peak import MatrixPeak

    peak, peaks = MatrixPeak(open_backend("onnxruntime"), workers), list[float]()
    for repeat in range(repeats):
        for at, entry in enumerate(measured):
            report("measure", repeat * len(measured) + at, repeats * len(measured))
            peaks.append(peak.measure())
            entry.runs.append(run_timed(loaded, timed, entry.inputs, output))
    rate = median(peaks)
    rows = tuple(_row(loaded, entry, rate) for entry in measured)
    program = loaded.program
    sizes = program.block_size, program.key_tile
    return BenchReport(program.name, output, *sizes, loaded.threads, repeats, rate, rows)


def _row(loaded: LoadedBundle, entry: _Length, peak: float) -> BenchRow:
    runs = sorted(entry.runs, key=lambda run: run.seconds)
    seconds = median(run.seconds for run in runs)
    middle = runs[(len(runs) - 1) // 2]
    report = middle.report
    schedule = loaded.schedule(entry.lengths, report.output)
    return BenchRow(
        length=report.length,
        seconds=seconds,
        all_seconds=tuple(run.seconds for run in entry.runs),
        tokens_per_second=report.length / seconds,
        engine_calls=report.engine_calls,
        flops=schedule.flops,
        flops_per_second=schedule.flops / seconds,
        share_of_peak=schedule.flops / seconds / peak,
        peak_bytes=entry.peak_bytes,
        planned_peak_bytes=schedule.peak_bytes,
        breakdown=middle.breakdown,
    )
