"""What a run returns beside its numbers: counted calls, time, memory, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from twoheads.graphs.serialization.bundle_format import FULL_PRECISION
from twoheads.runtime.reports.sampling import AverageReport, StageEstimate, summarize

__all__ = ["ClusterReport", "Counted", "Report", "Result", "StageReport", "merge_reports"]


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage of a run.

    Attributes:
        name: The stage's name in the program.
        kind: ``tokenwise``, ``attention`` or ``sequence``.
        calls: Engine calls, counted where they are made.
        seconds: Wall time; head stages that run interleaved share theirs by the time spent in each.
    """

    name: str
    kind: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What a cluster did for one run.

    Attributes:
        workers: Workers at the beginning.
        lost_workers: Those that were lost.
        recomputed_calls: Engine calls that were made again because of it, as far as they ended.
        read_bytes: What workers read that others, or the driver, held.
        copied_bytes: What workers copied, so that two of them hold it.
        worker_peak_bytes: The memory high-water mark of the worker that took most.
    """

    workers: int
    lost_workers: int
    recomputed_calls: int
    read_bytes: int
    copied_bytes: int
    worker_peak_bytes: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What a run counted while it ran; the attributes are those of :class:`Report`.

    ``estimates`` are of its sampled attentions. ``fewer`` is how many of the calls that a plan allows for mixtures of
    experts the tokens' choices did not ask for.
    """

    calls: int
    rounds: int
    stages: tuple[StageReport, ...]
    repeats: int = 0
    store_bytes: int = 0
    spilled_bytes: int = 0
    estimates: tuple[StageEstimate, ...] = ()
    fewer: int = 0
    expert_bytes: int = 0
    all_expert_bytes: int = 0
    cluster: ClusterReport | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One run. ``twoheads.graphs.serialization.json_codec.to_json`` turns it into JSON.

    Attributes:
        requests: Inputs of the run: 1, or as many as were packed into its blocks (they share one report).
        length: Tokens of the input, or of all of them together (see ``Schedule.length``).
        lengths: Tokens by input axis; empty for inputs of a fixed size and for packed requests.
        block_size: ``M``.
        blocks: Blocks of the hidden states, usually ``ceil(length / block_size)``, or the blocks into which the
            requests were packed.
        output: What was computed.
        engine_calls: Counted while running. formula_calls: The closed formula's number; equal, or something is wrong.
            Of mixtures of experts it is the number that follows from how often each expert was chosen.
        rounds: Rounds of calls that depended on each other, counted while running; ``O(L)``, whatever the length.
        seconds: Wall time of the run, without ``prepare_seconds``.
        prepare_seconds: Wall time to open engines that no earlier run had opened.
        peak_bytes: The process's memory high-water mark after the run; it includes whatever ran before.
        store_bytes: High-water mark of the token values in memory alone (hidden states, queries, keys, values, masks).
        threads: Workers that ran blocks in parallel.
        stages: In the order of execution.
        approximations: Names of the approximations the bundle was compiled with; empty means exact.
        warnings: What the user should know, e.g. a length beyond the trained context.
        repeated_calls: Those of ``engine_calls`` that repeat another because its scores were too far from their anchor
            (``tile``) or from the synthetic score (``stock`` and ``oracle``, see ``docs/design/stock.md``); normally 0.
        spilled_bytes: Token values that were written to files rather than held in memory.
        average: The estimated error of sampled attention; ``None`` where the bundle samples nothing.
        expert_bytes: Of the weights of gathered experts, what the run read: those that some token chose.
        all_expert_bytes: What it would have read if every expert had been chosen.
        precision: Of the bundle's values and weights, e.g. ``float32`` or ``float32, weights int8``.
        cluster: The share of a cluster's workers in it; ``None`` for a run in one process. On a cluster ``threads`` are
            those of a worker, ``store_bytes`` is 0 and ``peak_bytes`` is the driver's.
    """

    requests: int
    length: int
    lengths: dict[str, int]
    block_size: int
    blocks: int
    output: str
    engine_calls: int
    formula_calls: int
    rounds: int
    seconds: float
    prepare_seconds: float
    peak_bytes: int
    store_bytes: int
    threads: int
    stages: tuple[StageReport, ...]
    approximations: tuple[str, ...]
    warnings: tuple[str, ...]
    repeated_calls: int = 0
    spilled_bytes: int = 0
    average: AverageReport | None = None
    cluster: ClusterReport | None = None
    precision: str = FULL_PRECISION
    expert_bytes: int = 0
    all_expert_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A run's outcome.

    Attributes:
        array: ``logits [rows, vocabulary]`` (``[classes]`` where the model classifies the whole input),
            ``last [1, vocabulary]``, ``hidden [rows, width]`` or ``embedding [width]``, float32; ``None`` if the rows
            went to a sink.
        output: Which of these it is.
        report: Counts, time, memory.
    """

    array: npt.NDArray[Any] | None
    output: str
    report: Report


SUMMED = (
    *("requests", "length", "blocks", "engine_calls", "formula_calls", "repeated_calls", "rounds"),
    *("seconds", "prepare_seconds", "spilled_bytes", "expert_bytes", "all_expert_bytes"),
)
LARGEST = ("peak_bytes", "store_bytes")
CLUSTER_SUMMED = ("lost_workers", "recomputed_calls", "read_bytes", "copied_bytes")
CLUSTER_LARGEST = ("workers", "worker_peak_bytes")
"""What several runs have together, and of what only the largest counts."""


def merge_reports(reports: Sequence[Report]) -> Report:
    """One report for several runs; those that share a run count once."""
    first, *others = {id(report): report for report in reports}.values()
    if not others:
        return first
    runs = [first, *others]
    stages: dict[tuple[str, str], StageReport] = {}
    for stage in (stage for run in runs for stage in run.stages):
        known = stages.get((stage.name, stage.kind))
        calls, seconds = (known.calls, known.seconds) if known else (0, 0.0)
        stages[stage.name, stage.kind] = replace(stage, calls=stage.calls + calls, seconds=stage.seconds + seconds)
    sampled = [run.average for run in runs if run.average is not None]
    clusters = [run.cluster for run in runs if run.cluster is not None]
    return replace(
        first,
        **_merged(runs, SUMMED, LARGEST),
        lengths={},
        stages=tuple(stages.values()),
        warnings=tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
        average=summarize([stage for report in sampled for stage in report.stages]) if sampled else None,
        cluster=ClusterReport(**_merged(clusters, CLUSTER_SUMMED, CLUSTER_LARGEST)) if clusters else None,
    )


def _merged(reports: Sequence[Any], summed: Sequence[str], largest: Sequence[str]) -> dict[str, Any]:
    """The sums and the largest of what the reports hold under these names."""
    return {
        name: how(getattr(report, name) for report in reports)
        for how, names in ((sum, summed), (max, largest))
        for name in names
    }
