"""``twoheads bench``: how fast a bundle runs on this machine, and where the time goes."""

from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_facts, print_json, print_table, seconds_text, size_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.graphs.serialization.json_codec import to_json

if TYPE_CHECKING:
    from twoheads.export.bench.bench import BenchReport, BenchRow

__all__ = ["command"]

PARTS = {
    "tokenwise": "token-wise engines",
    "attention": "attention, merging",
    "scan": "scans",
    "head": "head",
    "host": "scheduling, copies",
    "idle": "idle",
}
"""What the parts of a breakdown are called, in its order."""


def command(
    bundle: options.Bundle,
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", "-n", metavar="N", min=1, help="Tokens of the input; may be repeated."),
    ] = None,
    output: Annotated[
        options.Output, typer.Option("--output", help="What to compute; hidden is everything but the head.")
    ] = options.Output.HIDDEN,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="R", min=1, help="Runs per length; the median is printed.")
    ] = 3,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="How many blocks to compute at the same time; one per core by default."),
    ] = None,
    backend: options.BackendOption = options.DEFAULT_BACKEND,
    precision: options.PrecisionOption = options.Precision.F32,
    tune: options.TuneOption = options.Tune.OFF,
    as_json: options.Json = False,
) -> None:
    """Measure the time and the memory of runs, and how much of the machine's matrix-product peak they reach.

    The peak is measured beside every run: products of 512 x 512 matrices on as many threads. A time is that from the
    call to the result, after a first run that opens the engines.

    Example: twoheads bench smollm2.bundle -n 1024 -n 8192
    """
    from twoheads.export.bench.bench import bench

    with PhaseProgress() as progress:
        report = bench(
            bundle,
            lengths=lengths or (1024, 4096),
            output=output.value,
            repeats=repeats,
            threads=threads,
            backend=backend,
            precision=precision.value,
            tune=tune.value,
            progress=progress,
        )
    if as_json:
        print_json(to_json(report))
    else:
        _print_report(report)


def _print_report(report: "BenchReport") -> None:
    print_facts(
        (
            (
                "program",
                f"{report.name}, {report.output}, blocks of {report.block_size}, key tiles of {report.key_tile}",
            ),
            ("measured", f"{report.repeats} runs a length on {report.threads} threads, medians"),
            ("matrix products", f"{report.peak_flops_per_second / 1e9:.0f} GFLOP/s at their peak"),
        )
    )
    headings = (">tokens", ">time", ">tokens/s", ">calls", ">GFLOP/s", ">of the peak", ">peak memory", ">planned")
    print_table("", headings, map(_cells, report.rows))
    shares = (">tokens", *(f">{name}" for name in PARTS.values()))
    print_table("Share of the threads' time", shares, map(_shares, report.rows))


def _cells(row: "BenchRow") -> tuple[str, ...]:
    return (
        str(row.length),
        seconds_text(row.seconds),
        f"{row.tokens_per_second:.0f}",
        str(row.engine_calls),
        f"{row.flops_per_second / 1e9:.0f}",
        f"{row.share_of_peak:.0%}",
        size_text(row.peak_bytes),
        size_text(row.planned_peak_bytes),
    )


def _shares(row: "BenchRow") -> tuple[str, ...]:
    total = sum(astuple(row.breakdown))
    parts = (getattr(row.breakdown, field.name) for field in fields(row.breakdown))
    return str(row.length), *(f"{part / total:.1%}" for part in parts)
