"""A bundle's run stage by stage, its engines open for their stage only; rows of tokens are kept in files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress
from twoheads.export.verification.collect import Question, RunCount
from twoheads.export.verification.report import BUNDLE
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import Value
from twoheads.runtime import LoadedBundle
from twoheads.runtime.execution.executor import RunPlan
from twoheads.runtime.inputs.requests import Request, read_inputs
from twoheads.runtime.memory.finite_rows import FiniteRows
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.reports.notices import notices
from twoheads.runtime.runs.host_executor import HostExecutor, HostRun
from twoheads.runtime.runs.outputs import take_output

__all__ = ["BundleValues", "TokenRows", "run_by_stages"]

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """A value of the program, ``[rows, width]`` in a mapped file."""

    name: str
    rows: Array


@dataclass(frozen=True, slots=True)
class BundleValues:
    """What a run gave.

    Attributes:
        values: Rows of tokens that the body made, in its order.
        outputs: ``hidden``; ``logits`` and ``embedding`` where the bundle has them.
        count: The run's calls.
        warnings: As of any run.
    """

    values: tuple[TokenRows, ...]
    outputs: dict[str, Array]
    count: RunCount
    warnings: tuple[str, ...]


def run_by_stages(bundle: LoadedBundle, question: Question, folder: Path, progress: Progress) -> BundleValues:
    """Runs ``bundle`` once, whatever its weights take: those of one stage are in memory.

    Args:
        bundle: What runs, on this machine's processor.
        question: The input.
        folder: Takes a file for every value of the body that is rows of tokens.
        progress: Told of every stage.

    Raises:
        InputError: Its runs are carried out elsewhere.
    """
    executor, program = bundle.executor, bundle.program
    if not isinstance(executor, HostExecutor):
        raise InputError("--streamed", f"needs engines of the processor, and {bundle.backend} has none", "leave it out")
    output = "hidden" if program.logits is None else "logits"
    request = read_inputs(program, question.given, output=output, positions=question.positions).only
    if request is None:
        raise InternalError("a question is one input")
    count = None if request.rows is None else len(request.rows)
    schedule = bundle.schedule(request.lengths, output, count, by_blocks=True)
    spilled = bundle.spill_plan(schedule).values
    began = time.perf_counter()
    with executor.start(RunPlan(schedule, spilled=spilled, streamed=True), None) as run:
        run.prepare()
        values = tuple(_values(run, request, folder, progress))
        outputs = _outputs(run, request, FiniteRows(program.values()))
        done = run.counted()
    seconds = time.perf_counter() - began
    calls = RunCount(BUNDLE, output, done.calls, schedule.formula_calls, done.repeats, seconds)
    return BundleValues(values, outputs, calls, notices(bundle.manifest, program, request.length))


def _values(run: HostRun, request: Request, folder: Path, progress: Progress) -> Iterator[TokenRows]:
    total, count = len(run.program.body), 0
    for done, stage in enumerate(run.stages(request.arrays)):
        progress("run the bundle, stage by stage", done, total)
        for value in stage.outputs:
            if value.name in run.stores and _is_rows(value):
                yield TokenRows(value.name, _kept(run.stores[value.name], folder / f"{count}.npy"))
                count += 1


def _is_rows(value: Value) -> bool:
    """Whether it is ``[1, tokens, width]``: what may be a layer's result."""
    rows = len(value.shape) == 3 and value.shape[0] == 1 and isinstance(value.shape[1], str)
    return rows and value.dtype == "float32"


def _kept(store: ValueStore, path: Path) -> Array:
    shape = (store.length, store.array.shape[-1])
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for part, at in store.parts(0, store.length):
        rows = part.reshape(-1, shape[1])
        file[at : at + len(rows)] = rows
    file.flush()
    del file  # its pages; what is mapped anew holds none
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _outputs(run: HostRun, request: Request, finite: FiniteRows) -> dict[str, Array]:
    program = run.program
    store = run.stores[program.hidden]
    found: dict[str, Array] = {"hidden": store.rows()[: store.length].astype(np.float32)}
    if program.pooling is not None:
        found["embedding"] = np.atleast_2d(run.embedding(program.pooling)).astype(np.float32)
    if program.logits is not None:
        taken = take_output(run, run.schedule, request.rows, None, finite)
        if taken is None:
            raise InternalError("a run without a sink gives no array")
        found["logits"] = np.atleast_2d(taken)
    return found
