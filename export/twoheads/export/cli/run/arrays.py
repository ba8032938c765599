"""``twoheads run --input``: arrays by name, for models that read several, for padded batches and packed documents."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.progress import CallProgress
from twoheads.graphs.errors import InternalError
from twoheads.runtime.inputs.array_files import read_npz

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle, Report
    from twoheads.runtime.cluster import Cluster

__all__ = ["read_arrays", "run_arrays"]

DOCUMENTS = "documents"


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a ``.npz`` file by name.

    Raises:
        InputError: No such file, or not a ``.npz`` file of numbers.
    """
    return read_npz(arguments.require_path(path, "a .npz file"))


def run_arrays(
    loaded: "LoadedBundle",
    arrays: dict[str, npt.NDArray[Any]],
    output: str,
    pack: str,
    out: Path,
    cluster: "Cluster | None" = None,
) -> "Report":
    """Runs the arrays and writes the output, with the batch's dimension in front where they are a batch.

    Raises:
        InputError: The model has no such inputs, or they do not fit each other.
    """
    from twoheads.runtime import NpzWriter
    from twoheads.runtime.reports.report import merge_reports

    given = dict(arrays)
    documents = given.pop(DOCUMENTS, None)
    with NpzWriter(out) as file, CallProgress("engine calls") as progress:
        how: dict[str, Any] = {"output": output, "progress": progress, "documents": documents}
        done: Any = loaded.run(given, pack=pack, **how) if cluster is None else cluster.run(loaded, given, **how)
        results = done if isinstance(done, list) else [done]
        found = [result.array for result in results if result.array is not None]
        if len(found) != len(results):
            raise InternalError(f"a run without a sink returned no {output}")
        batch = np.stack(found) if isinstance(done, list) else found[0]
        file.add("logits" if output == "last" else output, batch)
    return merge_reports([result.report for result in results])
