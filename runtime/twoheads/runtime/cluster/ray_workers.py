"""Workers as Ray actors; the only module that imports Ray, and only when a cluster is opened.

References are Ray's own, of objects that the workers put into its object store: Ray moves them from node to node, and
frees them when nobody knows them any more.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError, InternalError, TwoheadsError
from twoheads.runtime.cluster.transport import Opening, ValuesLostError, WorkerLostError
from twoheads.runtime.cluster.worker import Worker
from twoheads.runtime.execution.crew import available_threads

__all__ = ["RayWorkers"]

TICK_SECONDS = 0.2
"""How often the driver looks up while it waits."""

CONNECT_SECONDS = 10
"""How long an address may take to answer."""

START_SECONDS = 180
"""How long a worker may take to start and to open the bundle."""

LOCAL = re.compile(r"local:([1-9][0-9]*)")


class _RayObjects:
    """Ray's object store, seen from a worker. What a worker puts there is gone when the worker is."""

    def put(self, arrays: list[npt.NDArray[Any]]) -> Any:
        import ray

        return ray.put(arrays)

    def get(self, references: Sequence[Any]) -> list[list[npt.NDArray[Any]]]:
        import ray
        from ray.exceptions import ObjectLostError

        try:
            found: list[list[npt.NDArray[Any]]] = ray.get(list(references))
        except ObjectLostError:
            raise ValuesLostError([at for at, one in enumerate(references) if _is_lost(one)]) from None
        return found


def _is_lost(reference: Any) -> bool:
    import ray
    from ray.exceptions import ObjectLostError

    try:
        ray.get(reference)
    except ObjectLostError:
        return True
    return False


class _Actor:
    """The process of one worker."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def load(self, opening: Opening, threads: int) -> int:
        """Opens the bundle; returns the process's number."""
        try:
            self._worker = Worker(opening, threads, _RayObjects())
        except BundleError as error:
            fix = f"the bundle must lie in the same folder on every machine of the cluster; {error.fix}"
            raise BundleError(f"{error.where} on the machine {os.uname().nodename}", error.problem, fix) from None
        return os.getpid()

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the worker."""
        return getattr(self._worker, method)(*arguments)


class RayWorkers:
    """Actors that hold a bundle.

    Args:
        address: ``local:2``, for two workers on this machine, or the address of a cluster, which gets a worker on every
            node.
        threads: Blocks that each worker computes at the same time; ``None`` for as many as its share of the processors.

    Raises:
        InputError: Ray is not installed, or the address is none.
        TwoheadsError: The cluster can't be reached or started.
    """

    def __init__(self, address: str, threads: int | None) -> None:
        self._folder: Path | None = None
        self._ray = _import_ray()
        local = LOCAL.fullmatch(address)
        try:
            if local is None:
                self._connect(address)
                self._places = [
                    (node["NodeID"], threads or max(1, int(node["Resources"]["CPU"]))) for node in self._nodes()
                ]
            else:
                count = int(local[1])
                each = threads or max(1, available_threads() // count)
                self._start(count * each)
                self._places = [(self._nodes()[0]["NodeID"], each)] * count
        except Exception as error:  # noqa: BLE001 - Ray raises plain ones, too: where its processes are slow to start
            self.close()
            problem = f"can't be {'started' if local else 'reached'}: {str(error).splitlines()[0]}"
            fix = "see whether it runs there (`ray status`), with the same versions of Ray and Python"
            raise TwoheadsError(f"Ray cluster {address}", problem, "" if local else fix) from None
        self._actors: list[Any] = [None] * len(self._places)
        self._opening: Opening | None = None
        self.processes: dict[int, int] = {}

    def _start(self, processors: int) -> None:
        # Ray makes workers yield to everything else on the machine; these are the run.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Sockets and logs go to a folder that is removed again; the path of a socket has to be short.
        self._folder = Path(tempfile.mkdtemp(prefix="twoheads-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
        self._ray.init(
            num_cpus=processors,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=str(self._folder),
        )

    def _connect(self, address: str) -> None:
        if address.startswith("ray://"):
            raise InputError(f"--cluster {address}", "is Ray's client", "start the run on a machine of the cluster")
        if address != "auto":
            host, _, port = address.rpartition(":")
            if host in ("", "local") or not port.isdigit():
                raise InputError(f"--cluster {address}", "is no address", "give local:2, HOST:PORT or auto")
            with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
                pass  # Ray itself would try for minutes
        self._ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def threads(self) -> int:
        """Blocks computed at the same time by the worker that computes most."""
        return max(threads for _, threads in self._places)

    def load(self, opening: Opening) -> set[int]:
        """Has every worker open the bundle that is not lost with its node; returns those workers' numbers.

        Raises:
            BundleError: It is not there, damaged, or another one.
            TwoheadsError: A worker does not start.
        """
        alive = {node["NodeID"] for node in self._nodes()}
        there = [worker for worker, (node, _) in enumerate(self._places) if node in alive]
        if self._opening != opening:
            self._stop_actors()
            self._opening = opening
        starting = {self._load(worker, opening): worker for worker in there if self._actors[worker] is None}
        ready, late = (
            self._ray.wait(list(starting), num_returns=len(starting), timeout=START_SECONDS) if starting else ([], [])
        )
        if late:
            problem = f"{len(late)} of {self.count} workers have not started within {START_SECONDS} s"
            self._stop_actors()
            raise TwoheadsError("cluster", problem, "wait until its processors are free, or use fewer --threads")
        for handle in ready:
            try:
                self.processes[starting[handle]] = self.result(handle)
            except WorkerLostError:
                self.drop(starting[handle])
            except TwoheadsError:
                self._stop_actors()
                raise
        opened = {worker for worker in there if self._actors[worker] is not None}
        if not opened:
            raise TwoheadsError("cluster", "no worker could be started", "see why in Ray's logs")
        return opened

    def _load(self, worker: int, opening: Opening) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node, threads = self._places[worker]
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._ray.remote(_Actor).options(num_cpus=threads, scheduling_strategy=strategy).remote()
        self._actors[worker] = actor
        return actor.load.remote(opening, threads)

    def submit(self, worker: int, method: str, *arguments: Any) -> Any:
        return self._actors[worker].call.remote(method, *arguments)

    def wait(self, handles: Sequence[Any]) -> Any:
        ready, _ = self._ray.wait(list(handles), num_returns=1, timeout=TICK_SECONDS)
        return ready[0] if ready else None

    def result(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ValuesLostError | TwoheadsError):
                raise error.cause from None
            raise InternalError(f"a worker failed: {error}") from None
        except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError):
            raise WorkerLostError from None

    def put(self, arrays: list[npt.NDArray[Any]]) -> Any:
        return self._ray.put(arrays)

    def drop(self, worker: int) -> None:
        """Ends a worker that was lost, should it still be there; the next :meth:`load` starts another."""
        if self._actors[worker] is not None:
            self._ray.kill(self._actors[worker])
        self._actors[worker] = None
        self.processes.pop(worker, None)

    def close(self) -> None:
        """Ends the workers, and the cluster if it is our own."""
        self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_actors(self) -> None:
        for worker in range(self.count):
            self.drop(worker)


def _import_ray() -> Any:
    """Ray, told to report nothing to anybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--cluster", "Ray is not installed", 'pip install "twoheads[cluster]"') from None
    if ray.is_initialized():
        raise InputError("--cluster", "this process is connected to a Ray cluster already", "close that first")
    return ray
