"""One input's run with the result streamed to a ``.npz`` file, in a job or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twoheads.export.cli.shared.progress import CallProgress
from twoheads.graphs.errors import InternalError
from twoheads.runtime.memory.disk_space import check_room

if TYPE_CHECKING:
    from twoheads.runtime import Job, LoadedBundle, Report, Result
    from twoheads.runtime.cluster import Cluster

__all__ = ["run_to_file"]


def run_to_file(
    loaded: LoadedBundle,
    tokens: npt.NDArray[Any],
    output: str,
    count: int,
    positions: npt.NDArray[np.int64] | None,
    out: Path,
    job: Job | None = None,
    cluster: Cluster | None = None,
) -> Report:
    """Runs and writes ``logits``, ``hidden`` (both streamed) or ``embedding``, and which ``positions`` were picked.

    ``count`` is how many rows there are. The run is that of a ``job``, on a ``cluster``, or neither.
    """
    from twoheads.runtime import NpzWriter

    def run(**options: Any) -> Result:
        if job is not None:
            return loaded.run_job(job, tokens, output=output, progress=progress, **options)
        options |= {"output": output, "progress": progress}
        result: Any = loaded.run(tokens, **options) if cluster is None else cluster.run(loaded, tokens, **options)
        return result  # type: ignore[no-any-return]  # one input, one result

    keep = None if job is None else job.request["partial"]
    shape, value = None, loaded.program.row_value(output)
    if value is not None:
        shape = (count if positions is None else int(positions.size), int(value.shape[-1]))
        _check_room(out, keep, shape)
    with NpzWriter(out, keep=keep) as file, CallProgress("engine calls") as progress:
        if shape is not None:
            if positions is not None:
                file.add("positions", positions)
            return run(positions=positions, sink=file.array(output, shape)).report
        result = run()
        if result.array is None:
            raise InternalError(f"a run without a sink returned no {output}")
        file.add("logits" if output == "last" else output, result.array)
        return result.report


def _check_room(out: Path, keep: str | None, shape: tuple[int, int]) -> None:
    """Refuses an output that will not fit on the disk; of a run that goes on, what is written is there already."""
    kept = out if keep is None else out.with_name(keep)
    written = kept.stat().st_size if keep is not None and kept.exists() else 0
    check_room(out.parent, shape[0] * shape[1] * np.dtype(np.float32).itemsize - written, "the output takes")
