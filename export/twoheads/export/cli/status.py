"""``twoheads status``: how far a run with ``--spill`` or ``--inputs`` is, while it runs or after it was stopped."""

from pathlib import Path
from typing import Annotated, Any

import typer

from twoheads.export.cli import options
from twoheads.export.cli.console import print_facts, print_json, seconds_text
from twoheads.export.cli.run_documents import is_document_folder, job_folder

__all__ = ["NAME", "command"]

NAME = "status"


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of `run --spill`, or that of the results of `run --inputs`."),
    ],
    as_json: options.Json = False,
) -> None:
    """Show the progress, the rate and the time left of a run with --spill or --inputs.

    Example: twoheads status /scratch/book
    """
    from twoheads.runtime.job import read_progress

    job, told, running, finished = read_progress(job_folder(folder))
    unit = "documents" if is_document_folder(folder) else "calls"
    facts = _facts(told, running=running, finished=finished)
    if as_json:
        print_json({**facts, "identity": job["identity"], "request": job["request"]})
        return
    rate, left = facts["calls_per_second"], facts["seconds_left"]
    print_facts(
        (
            ("state", facts["state"]),
            ("written to", str(job["request"].get("out", "what the program that runs it decides"))),
            (
                "documents" if unit == "documents" else "engine calls",
                f"{facts['calls']} of {facts['total']}" if facts["total"] else "none yet",
            ),
            *((("failed", str(told["failed"])),) if "failed" in told else ()),
            ("rate", "not known yet" if not rate else f"{rate:.3g} {unit}/s"),
            ("time left", "not known yet" if left is None else seconds_text(left)),
        )
    )


def _facts(told: dict[str, Any], *, running: bool, finished: bool) -> dict[str, Any]:
    """Progress by the last process that ran the job: the rate is of what it did itself."""
    calls, total = told.get("calls", 0), told.get("total", 0)
    seconds = told.get("seconds", 0.0)
    rate = (calls - told["began"]) / seconds if seconds else 0.0
    return {
        "state": "finished" if finished else "running" if running else "stopped",
        "calls": calls,
        "total": total,
        "calls_per_second": rate,
        "seconds_left": 0.0 if finished else (total - calls) / rate if rate else None,
        "updated": told.get("updated"),
    }
