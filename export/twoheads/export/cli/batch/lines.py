"""``twoheads batch --lines``: every line of a text as an input of its own, short ones packed into shared calls."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import (
    approximations_text,
    calls_text,
    of_text,
    print_facts,
    seconds_text,
    size_text,
)
from twoheads.export.cli.shared.progress import CallProgress
from twoheads.export.cli.shared.run_report import tell
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.serialization.json_codec import to_json

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle, Report

__all__ = ["read_lines", "run_lines", "tell_lines"]


def read_lines(path: Path, bundle: Path, loaded: "LoadedBundle") -> list[npt.NDArray[np.int64]]:
    """The tokens of every line of a text file that is not blank, in order.

    Raises:
        InputError: The file can't be read, or the bundle has no tokenizer.
    """
    lines = [line for line in arguments.read_text(path).splitlines() if line.strip()]
    return [arguments.encode_text(line, loaded.tokenizer, source=path, bundle=bundle) for line in lines]


def run_lines(
    loaded: "LoadedBundle", inputs: list[npt.NDArray[np.int64]], output: str, pack: str, out: Path
) -> tuple["Report", ...]:
    """Runs the inputs and writes one row for each, ``[lines, width]``; returns the report of every run.

    Raises:
        InputError: The output is not one row an input.
    """
    if output not in ("embedding", "last"):
        problem = f"the output is {output}, which has as many rows as the line has tokens"
        raise InputError("--lines", problem, "ask for --output embedding or --output last, which are one row a line")
    from twoheads.runtime import NpzWriter

    with NpzWriter(out) as file, CallProgress("engine calls") as progress:
        results = loaded.run(list(inputs), output=output, progress=progress, pack=pack)
        rows = [result.array for result in results if result.array is not None]
        if len(rows) != len(results):
            raise InternalError(f"a run without a sink returned no {output}")
        file.add("logits" if output == "last" else output, np.stack([row.reshape(-1) for row in rows]))
    # Requests that were packed together share one report.
    return tuple({id(result.report): result.report for result in results}.values())


def tell_lines(reports: tuple["Report", ...], out: Path, path: Path | None, *, as_json: bool) -> None:
    """Tells of the runs that wrote ``out``; the totals and their reports also go to ``path``, if one is given.

    Raises:
        TwoheadsError: That can't be written.
    """
    warnings = (warning for report in reports for warning in report.warnings)
    tell(warnings, _to_json(reports), path, lambda: _print(reports, out), as_json=as_json)


def _to_json(reports: tuple["Report", ...]) -> dict[str, Any]:
    """Totals, and the report of every run."""
    return {
        "requests": sum(report.requests for report in reports),
        "engine_calls": sum(report.engine_calls for report in reports),
        "formula_calls": sum(report.formula_calls for report in reports),
        "repeated_calls": sum(report.repeated_calls for report in reports),
        "seconds": sum(report.seconds for report in reports),
        "runs": [to_json(report) for report in reports],
    }


def _print(reports: tuple["Report", ...], out: Path) -> None:
    """The totals for people."""
    total = _to_json(reports)
    packed = [report for report in reports if report.requests > 1]
    together = sum(report.requests for report in packed)
    blocks = sum(report.blocks for report in packed)
    print_facts(
        (
            ("written", f"{out} ({size_text(out.stat().st_size)}), {reports[0].output}, one row a line"),
            ("inputs", f"{total['requests']}, {of_text(sum(report.length for report in reports), 'token')}"),
            ("packed", f"{of_text(together, 'input')} in {of_text(blocks, 'block')}" if packed else "none"),
            ("engine calls", calls_text(total["engine_calls"], total["formula_calls"], total["repeated_calls"])),
            ("time", seconds_text(total["seconds"])),
            ("peak memory", size_text(max(report.peak_bytes for report in reports))),
            ("precision", reports[0].precision),
            ("approximations", approximations_text(reports[0].approximations, reports[0].precision)),
        )
    )
