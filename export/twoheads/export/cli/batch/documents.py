"""``twoheads batch --documents``: every document of a folder or of a file of JSON lines, into a folder of results."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import (
    calls_text,
    of_text,
    print_facts,
    print_json,
    print_note,
    print_warning,
    seconds_text,
)
from twoheads.export.cli.shared.progress import CallProgress
from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.relative_path import AbsolutePath

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle
    from twoheads.runtime.documents.results import Totals
    from twoheads.runtime.jobs.status import JobStatus

__all__ = ["SOME_FAILED", "is_document_folder", "job_folder", "resume_documents", "run_documents"]

SOME_FAILED = 3
"""Exit code where all is done, and documents have errors instead of results."""


def job_folder(folder: Path) -> Path:
    """Where the job of a folder is: of one with results of documents, inside of it."""
    from twoheads.runtime.documents.results import JOB_FOLDER

    return folder / JOB_FOLDER if is_document_folder(folder) else folder


def is_document_folder(folder: Path) -> bool:
    """Whether ``batch --documents`` wrote it."""
    from twoheads.runtime.documents.results import JOB_FOLDER

    return (folder / JOB_FOLDER).is_dir()


def resume_documents(folder: Path, *, threads: int | None, check: str, as_json: bool) -> None:
    """Goes on with the documents of ``folder``, as they were asked for.

    Raises:
        InputError: Bundle or documents have changed, or another process runs it.
        TwoheadsError: It is damaged.
    """
    from twoheads.runtime import load
    from twoheads.runtime.jobs.status import read_status

    status = read_status(job_folder(folder))
    if status.problem is not None:
        raise status.problem
    asked = _asked(folder, status)
    backend, _, precision = asked.backend.partition(" ")
    loaded = load(
        asked.folder,
        backend=backend,
        precision=precision,
        threads=threads,
        check=check,
        memory_limit=asked.memory_limit,
        key_tile=asked.key_tile,
    )
    run_documents(
        loaded,
        Path(asked.source),
        folder,
        as_json=as_json,
        output=asked.output,
        pack=asked.pack,
        truncate=asked.truncate,
        follow_links=asked.follow_links,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a folder of results remembers: what it is of, and where bundle and documents are."""

    backend: str
    key_tile: int
    memory_limit: int | None
    output: str
    pack: str
    truncate: bool
    follow_links: bool
    folder: AbsolutePath
    source: AbsolutePath


def _asked(folder: Path, status: JobStatus) -> _Asked:
    held = {"follow_links": False} | {name.replace(" ", "_"): told for name, told in status.identity.items()}
    held |= {name: told for name, told in status.request.items() if name in ("folder", "source")}
    try:
        return from_json(_Asked, {field.name: held[field.name] for field in fields(_Asked)}, "job.json")
    except (KeyError, FormatError) as error:
        raise TwoheadsError(str(folder), f"does not say what it is of: {error}", "run in a new folder") from None


def run_documents(loaded: LoadedBundle, source: Path, out: Path, *, as_json: bool, **options: Any) -> None:
    """Runs the documents and tells what became of them.

    Raises:
        typer.Exit: With :data:`SOME_FAILED` where some have no result.
        InputError: There are none, or ``out`` is of something else.
    """
    from twoheads.runtime import run_documents as run

    arguments.check_output_path(out, folder=True)
    if out.suffix == ".npz":
        raise InputError(str(out), "is named as a file, and results of --documents are a folder", "name a folder")
    began = time.perf_counter()
    first: list[int] = []

    def show(done: Totals, total: int) -> None:
        first.append(done.tokens)
        rate = done.tokens / max(done.seconds, 1e-9)
        bar(done.documents, total, f"documents, {done.failed} failed, {rate:.0f} tokens/s")

    with CallProgress("documents") as bar:
        totals = run(loaded, source, out, progress=show, **options)
    if not first:
        print_note(f"{out}: all documents were done before")
    _tell(totals, out, time.perf_counter() - began, as_json=as_json)
    if totals.failed:
        raise typer.Exit(SOME_FAILED)


def _tell(totals: Totals, out: Path, seconds: float, *, as_json: bool) -> None:
    for warning in totals.warnings:
        print_warning(warning)
    if as_json:
        print_json({**to_json(totals), "wall_seconds": seconds})
        return
    failed = f", {totals.failed} without a result (their lines in index.jsonl say why)" if totals.failed else ""
    print_facts(
        (
            ("written", f"{out}: {of_text(totals.parts, 'part')} and index.jsonl"),
            ("documents", f"{totals.documents}{failed}"),
            ("tokens", f"{totals.tokens} in {of_text(totals.blocks, 'block')}"),
            ("engine calls", calls_text(totals.engine_calls, totals.formula_calls, totals.repeated_calls)),
            ("time", f"{seconds_text(totals.seconds)}, {totals.tokens / max(totals.seconds, 1e-9):.0f} tokens/s"),
        )
    )
