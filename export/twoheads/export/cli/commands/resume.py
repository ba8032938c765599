"""``twoheads resume``: a run that was stopped, from its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from twoheads.export.cli.batch.documents import is_document_folder, resume_documents
from twoheads.export.cli.run.job import resume_job
from twoheads.export.cli.run.report import tell_run
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.load_options import Check, CheckOption, Threads
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.graphs.errors import InputError

__all__ = ["ResumeOptions", "command"]


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """What may differ from the run that was stopped."""

    report: options.ReportFile = None
    threads: Threads = None
    memory_limit: options.MemoryLimit = None
    check: CheckOption = Check.FULL
    as_json: options.Json = False


@takes_options
def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of `run --spill`, or that of `batch`.")],
    asked: ResumeOptions,
) -> None:
    """Continue a stopped `run --spill` or `batch --documents`; the result is the same to the bit.

    The folder remembers the bundle, the input, the output and the options. Exit code 3: finished, but some documents
    failed.

    Example: twoheads resume /scratch/book
    """
    if is_document_folder(folder):
        for option, given in (("--memory-limit", asked.memory_limit), ("--report", asked.report)):
            if given is not None:
                problem = f"is for a run with --spill, and {folder} holds the results of documents"
                raise InputError(option, problem, "leave it out")
        resume_documents(folder, threads=asked.threads, check=asked.check.value, as_json=asked.as_json)
        return
    report = None if asked.report is None else arguments.check_output_path(asked.report)
    limit = None if asked.memory_limit is None else arguments.parse_size(asked.memory_limit)
    how: dict[str, Any] = {"threads": asked.threads, "check": asked.check.value, "memory_limit": limit}
    done, written = resume_job(folder, report=report, **how)
    tell_run(done, written, report, as_json=asked.as_json)
