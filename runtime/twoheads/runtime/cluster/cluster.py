"""What a user opens, and hands bundles and inputs to: the workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.backends.registry import HOST_BACKENDS
from twoheads.runtime.cluster.executor import ClusterExecutor, check_clustered, most_held
from twoheads.runtime.cluster.ray_workers import RayWorkers
from twoheads.runtime.cluster.transport import Opening
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.notices import give_notices
from twoheads.runtime.reports.report import Result
from twoheads.runtime.runs.execute import run_inputs
from twoheads.runtime.runs.run_context import Progress
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["Cluster"]

logger = logging.getLogger(__name__)


class Cluster:
    """Workers of a Ray cluster; use it as a context manager.

    ::

        with Cluster("local:2") as cluster:
            result = cluster.run(load("smollm2.bundle"), tokens, output="last")

    Args:
        address: ``local:2`` for a cluster of two workers on this machine, which ends with the ``with`` block; or the
            address of a running one, ``HOST:PORT`` or ``auto``, which gets a worker on every node. The bundle must lie
            in the same folder on every node.
        threads: Blocks that each worker computes at the same time; ``None`` for its share of the processors.
        check: How thoroughly workers check the bundle's files, ``read``, ``full`` or ``size``.

    Raises:
        InputError: Ray is not installed, or this process is connected to a cluster already.
        TwoheadsError: The cluster can't be started or reached.
    """

    def __init__(self, address: str, *, threads: int | None = None, check: str = "read") -> None:
        self._workers = RayWorkers(address, threads)
        self._check = check

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and the cluster if it was started here."""
        self._workers.close()

    @property
    def workers(self) -> int:
        """How many workers there are, lost ones included: they are started again for the next run."""
        return self._workers.count

    @property
    def processes(self) -> dict[int, int]:
        """The process number of every worker that lives, by the worker's number, once a bundle was run."""
        return dict(self._workers.processes)

    def held_bytes(self, schedule: Schedule) -> int:
        """Bytes of values that one worker holds at most in a run, copies for others' loss among them."""
        return most_held(schedule, self.workers)

    def run(
        self,
        bundle: LoadedBundle,
        tokens: Any,
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        attention_mask: Any = None,
        documents: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> Result | list[Result]:
        """Runs one input, or each of several, with the result of :meth:`LoadedBundle.run` to the bit.

        The arguments are those of that method; inputs are not packed, but run one after the other. Workers that are
        lost in a run are done without: what they had computed is computed by others.

        Raises:
            InputError: As that method; or the bundle has a folder for values, samples keys, or has no tile engines; or
                a worker's share does not fit into the bundle's memory limit, with the weights of a stage at a time.
            BundleError: The bundle is not the same on all nodes.
            TwoheadsError: All workers were lost.
        """
        if bundle.spill is not None:
            raise InputError("cluster", "keeps values in its object store", "load without spill")
        if bundle.backend not in HOST_BACKENDS:
            raise InputError(
                "cluster", f"workers know no backend {bundle.backend}", f"use one of: {', '.join(HOST_BACKENDS)}"
            )
        check_clustered(bundle.program)
        inputs = read_inputs(
            bundle.program,
            tokens,
            output=output,
            positions=positions,
            sink=sink is not None,
            attention_mask=attention_mask,
            documents=documents,
        )
        path, how = os.path.abspath(bundle.path), (bundle.backend, bundle.precision)
        limited = bundle.memory_limit is not None
        opening = Opening(path, self._check, *how, bundle.identity, bundle.program.key_tile, limited)
        alive = self._workers.load(opening)
        before = set(alive)
        executor = ClusterExecutor(self._workers, alive, self._workers.threads)
        try:
            results = run_inputs(bundle, executor, inputs, sink=sink, progress=progress)
        finally:
            for worker in before - alive:
                logger.warning("worker %d of the cluster was lost", worker)
                self._workers.drop(worker)
        give_notices(note for result in results for note in result.report.warnings)
        return inputs.assemble(results)
