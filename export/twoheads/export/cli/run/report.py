"""What ``run`` and ``resume`` print about a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twoheads.export.cli.run.cluster import cluster_lines
from twoheads.export.cli.run.sampling_lines import average_lines
from twoheads.export.cli.shared.console import (
    approximations_text,
    calls_text,
    of_text,
    print_facts,
    print_table,
    seconds_text,
    size_text,
)
from twoheads.export.cli.shared.run_report import tell
from twoheads.graphs.serialization.json_codec import to_json

if TYPE_CHECKING:
    from twoheads.runtime import Report

__all__ = ["tell_run"]


def tell_run(done: Report, out: Path, path: Path | None, *, as_json: bool) -> None:
    """Tells of the run that wrote ``out``; its report also goes to ``path``, if one is given.

    Raises:
        TwoheadsError: That can't be written.
    """
    tell(done.warnings, to_json(done), path, lambda: _print(done, out), as_json=as_json)


def _experts_line(report: Report) -> tuple[tuple[str, str], ...]:
    """What of the experts' weights was read."""
    if not report.all_expert_bytes:
        return ()
    read, every = size_text(report.expert_bytes), size_text(report.all_expert_bytes)
    return (("experts read", f"{read} of {every}"),)


def _print(report: Report, out: Path) -> None:
    print_facts(
        (
            ("written", f"{out} ({size_text(out.stat().st_size)}), {report.output}"),
            (
                "length",
                f"{of_text(report.length, 'token')} in {of_text(report.blocks, 'block')} of {report.block_size}",
            ),
            ("engine calls", calls_text(report.engine_calls, report.formula_calls, report.repeated_calls)),
            ("time", f"{seconds_text(report.seconds)}, {report.length / max(report.seconds, 1e-9):.0f} tokens/s"),
            ("peak memory", size_text(report.peak_bytes)),
            *cluster_lines(report),
            *_experts_line(report),
            *((("spilled", size_text(report.spilled_bytes)),) if report.spilled_bytes else ()),
            ("precision", report.precision),
            ("approximations", approximations_text(report.approximations, report.precision)),
            *average_lines(report.average),
        )
    )
    totals: dict[str, list[float]] = {}
    for stage in report.stages:
        entry = totals.setdefault(stage.kind, [0, 0, 0.0])
        entry[0] += 1
        entry[1] += stage.calls
        entry[2] += stage.seconds
    rows = [(kind, f"{n:.0f}", f"{calls:.0f}", seconds_text(spent)) for kind, (n, calls, spent) in totals.items()]
    print_table("", ("kind", ">stages", ">calls", ">time"), rows)
