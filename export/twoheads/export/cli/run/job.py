"""``twoheads run --spill DIR`` and ``twoheads resume DIR``: a run that continues after it was killed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from twoheads.export.cli.run.one_input import run_to_file
from twoheads.export.cli.run.sequence_file import SequenceFile, SequenceRequest
from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_note, size_text
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.relative_path import AbsolutePath, RelativePath

if TYPE_CHECKING:
    from twoheads.runtime import Job, LoadedBundle, Report

__all__ = ["JobRequest", "resume_job", "start_job"]

FIX = "start the run again in another folder"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a job remembers of the command line.

    Attributes:
        bundle, out: Absolute paths: whoever goes on may be elsewhere.
        input: The file that is read.
        positions: Rows of the output, if not all.
        partial: The file beside ``out`` that holds the rows so far.
        output: What is computed.
        backend, precision: On what.
        memory_limit: In bytes.
        key_tile: In tokens.
    """

    bundle: AbsolutePath
    input: SequenceRequest
    positions: tuple[int, ...] | None
    out: AbsolutePath
    partial: RelativePath
    output: str
    backend: str
    precision: str
    memory_limit: int | None
    key_tile: int


def start_job(
    folder: Path,
    loaded: LoadedBundle,
    schedule: Schedule,
    tokens: npt.NDArray[Any],
    positions: npt.NDArray[np.int64] | None,
    out: Path,
    *,
    source: SequenceFile,
) -> Report:
    """Runs with checkpoints in ``folder``, which remembers where input and output are and what is wanted."""
    from twoheads.runtime import Job

    with Job(folder) as job:
        request = JobRequest(
            bundle=AbsolutePath(os.path.abspath(loaded.path)),
            input=source.to_request(),
            positions=None if positions is None else tuple(positions.tolist()),
            out=AbsolutePath(os.path.abspath(out)),
            partial=RelativePath(f".{uuid4().hex}.partial"),
            output=schedule.output,
            backend=loaded.backend,
            precision=loaded.precision,
            memory_limit=loaded.memory_limit,
            key_tile=loaded.program.key_tile,
        )
        job.request = to_json(request)
        return _run(job, loaded, schedule, tokens, positions, out)


def resume_job(
    folder: Path, *, threads: int | None, check: str, memory_limit: int | None, report: Path | None = None
) -> tuple[Report, Path]:
    """Goes on with the job in ``folder``; returns its report and the file it wrote, which is not ``report``.

    Raises:
        InputError: There is no job, it is finished, or another process runs it; or its input has changed.
        TwoheadsError: It is damaged.
    """
    from twoheads.runtime import Job, load

    with Job(folder, resume=True) as job:
        job.require_unfinished()
        request = _read_request(folder, job.request)
        source = SequenceFile.of_request(request.input)
        given = {"--text": source.path, "--report": report}
        arguments.check_output_path(Path(request.out), beside=given)
        loaded = load(
            request.bundle,
            backend=request.backend,
            precision=request.precision,
            threads=threads,
            check=check,
            memory_limit=memory_limit or request.memory_limit,
            key_tile=request.key_tile,
        )
        positions = None if request.positions is None else _positions(folder, request.positions)
        tokens, out = source.read(loaded), Path(request.out)
        lengths = resolve_lengths(loaded.program, int(tokens.size))
        count = None if positions is None else int(positions.size)
        schedule = loaded.schedule(lengths, request.output, count, by_blocks=True)
        return _run(job, loaded, schedule, tokens, positions, out), out


def _read_request(folder: Path, request: Mapping[str, Any]) -> JobRequest:
    if "partial" not in request:
        fix = "go on with it there, by `run_job`"
        raise TwoheadsError(str(folder), "is a job that a program started, not `twoheads run`", fix)
    try:
        read = from_json(JobRequest, request, "request")
    except FormatError as error:
        raise TwoheadsError(str(folder), f"does not say what to go on with: {error}", FIX) from None
    if not read.partial.is_name:
        raise TwoheadsError(str(folder), f"keeps its rows in {read.partial!r}, not beside the output", FIX)
    return read


def _positions(folder: Path, positions: tuple[int, ...]) -> npt.NDArray[np.int64]:
    try:
        return np.array(positions, np.int64)
    except OverflowError:
        raise TwoheadsError(str(folder), "asks for positions that no input has", FIX) from None


def _run(
    job: Job,
    loaded: LoadedBundle,
    schedule: Schedule,
    tokens: npt.NDArray[Any],
    positions: npt.NDArray[np.int64] | None,
    out: Path,
) -> Report:
    arguments.check_output_path(out)
    plan = loaded.spill_plan(schedule, job)
    print_note(
        f"{spill_line(plan, schedule)}; with checkpoints, up to {size_text(schedule.memory.values)} in {job.folder}"
    )
    count = value_rows(loaded.program.value(loaded.program.hidden), schedule.lengths)
    report = run_to_file(loaded, tokens, schedule.output, count, positions, out, job)
    job.finish()
    return report
