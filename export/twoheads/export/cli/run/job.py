"""``twoheads run --spill DIR`` and ``--resume DIR``: a run that goes on after it was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from twoheads.export.cli.run.one_input import run_to_file
from twoheads.export.cli.run.sequence_file import SequenceFile
from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_note, size_text
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.schedule.schedule import Schedule

if TYPE_CHECKING:
    from twoheads.runtime import Job, LoadedBundle, Report

__all__ = ["resume_job", "start_job"]


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
        job.request = {
            "bundle": os.path.abspath(loaded.path),
            "input": source.to_request(),
            "positions": None if positions is None else positions.tolist(),
            "out": os.path.abspath(out),
            "partial": f".{out.name}.{uuid4().hex[:12]}.partial",
            "output": schedule.output,
            "backend": loaded.backend,
            "precision": loaded.precision,
            "memory_limit": loaded.memory_limit,
            "key_tile": loaded.program.key_tile,
        }
        return _run(job, loaded, schedule, tokens, positions, out)


def resume_job(folder: Path, *, threads: int | None, check: str, memory_limit: int | None) -> tuple[Report, Path]:
    """Goes on with the job in ``folder``; returns its report and the file it wrote.

    Raises:
        InputError: There is no job, it is finished, or another process runs it; or its input has changed.
        TwoheadsError: It is damaged.
    """
    from twoheads.runtime import Job, load

    with Job(folder, resume=True) as job:
        try:
            bundle, out, output = (job.request[name] for name in ("bundle", "out", "output"))
            backend, precision = job.request["backend"], job.request["precision"]
            key_tile = job.request["key_tile"]
            limit = memory_limit or job.request["memory_limit"]
            given, rows = job.request["input"], job.request["positions"]
        except KeyError:
            fix = "go on with it there, by `run_job`"
            raise TwoheadsError(str(folder), "is a job that a program started, not `twoheads run`", fix) from None
        source = SequenceFile.of_request(given)
        loaded = load(
            bundle,
            backend=backend,
            precision=precision,
            threads=threads,
            check=check,
            memory_limit=limit,
            key_tile=key_tile,
        )
        tokens, positions = source.read(loaded), None if rows is None else np.array(rows, np.int64)
        lengths = resolve_lengths(loaded.program, int(tokens.size))
        count = None if positions is None else int(positions.size)
        schedule = loaded.schedule(lengths, output, count, by_blocks=True)
        return _run(job, loaded, schedule, tokens, positions, Path(out)), Path(out)


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
    print_note(f"{spill_line(plan)}; with checkpoints, up to {size_text(schedule.memory.values)} in {job.folder}")
    count = value_rows(loaded.program.value(loaded.program.hidden), schedule.lengths)
    report = run_to_file(loaded, tokens, schedule.output, count, positions, out, job)
    job.finish()
    return report
