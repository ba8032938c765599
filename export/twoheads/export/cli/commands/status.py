"""``twoheads status``: how far a run with ``--spill`` or of ``batch`` is, while it runs or after it was stopped."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.batch.documents import is_document_folder, job_folder
from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_facts, print_json, seconds_text

if TYPE_CHECKING:
    from twoheads.runtime.jobs.status import JobStatus

__all__ = ["command"]


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of `run --spill`, or that of `batch --documents`."),
    ],
    as_json: options.Json = False,
) -> None:
    """Show the progress, the last checkpoint and the time left of `run --spill` or `batch --documents`.

    Exit code 1: its files are damaged.

    Example: twoheads status /scratch/book
    """
    from twoheads.runtime.jobs.status import read_status

    status = read_status(job_folder(folder))
    facts = _facts(status)
    if as_json:
        print_json({**facts, "identity": status.identity, "request": status.request})
    else:
        print_facts(_lines(folder, status, facts))
    if status.problem is not None:
        raise typer.Exit(1)


def _facts(status: "JobStatus") -> dict[str, Any]:
    """Progress by the last process that ran the job: the rate is of what it did itself."""
    told = status.progress
    calls, total = told.get("calls", 0), told.get("total", 0)
    seconds = told.get("seconds", 0.0)
    rate = (calls - told["began"]) / seconds if seconds else 0.0
    if status.state == "stopped" and status.calls is not None:
        calls = min(calls, status.calls)  # what came after the last checkpoint is done again
    return {
        "state": status.state,
        "problem": None if status.problem is None else str(status.problem),
        "calls": calls,
        "total": total,
        "checkpoint_calls": status.calls,
        "stages": list(status.stages),
        "part": status.part,
        "calls_per_second": rate,
        "seconds_left": 0.0 if status.state == "finished" else (total - calls) / rate if rate else None,
        "updated": told.get("updated"),
    }


def _lines(folder: Path, status: "JobStatus", facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values to print."""
    updated, state, request = facts["updated"], status.state, status.request
    ago = "" if updated is None or state != "stopped" else f", {seconds_text(max(1.0, time.time() - updated))} ago"
    lines = [("state", state + ago)]
    lines += [(name, str(request[name])) for name in ("bundle",) if name in request]
    source = request.get("input")
    lines += [("input", str(source.get("path")))] if isinstance(source, dict) else []
    lines += [("written to", str(request.get("out", "what the program that runs it decides")))]
    if status.problem is not None:
        return [*lines, ("problem", str(status.problem))]
    documents = is_document_folder(folder)
    done = f"{facts['calls']} of {facts['total']}" if facts["total"] else "none yet"
    lines.append(("documents" if documents else "engine calls", done))
    lines += [("failed", str(status.progress["failed"]))] if "failed" in status.progress else []
    if state == "finished":
        return lines
    if status.calls is not None:
        part = "" if status.part is None else f", and a part of {status.part}"
        lines.append(("last checkpoint", f"{len(status.stages)} stages{part}: {status.calls} calls"))
    rate, left = facts["calls_per_second"], facts["seconds_left"]
    unit = "documents" if documents else "calls"
    lines += [
        ("rate", "not known yet" if not rate else f"{rate:.3g} {unit}/s"),
        ("time left", "not known yet" if left is None else seconds_text(left)),
    ]
    return [*lines, ("go on", f"twoheads resume {folder}")] if state == "stopped" else lines
