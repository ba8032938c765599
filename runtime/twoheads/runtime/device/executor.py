"""Carry out runs on a device: what :class:`twoheads.runtime.runs.host_executor.HostExecutor` is for the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.runtime.backends.device_protocol import HostBytes
from twoheads.runtime.backends.protocol import DeviceBackend
from twoheads.runtime.device.plan import DevicePlan, Shape, Sizing, make_plan, make_shape
from twoheads.runtime.device.queued_stages import StageQueue
from twoheads.runtime.device.run import DeviceRun, Kept
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.executor import RunPlan, Tick

__all__ = ["DeviceExecutor", "open_device"]

PLANS = 4
"""Numbers of blocks whose plans and graphs are kept, those used last."""


class DeviceExecutor:
    """Runs one bundle's schedules on a backend's device, one at a time.

    The first run of a shape queues its work call by call, the second records it while it does so, and later ones replay
    it: a length that occurs once is not worth a graph. Where recording fails, every run queues its calls.

    Args:
        engines: The bundle's engines, of ``backend``.
        backend: The device's.
        threads: Of the host.
        limit: Bytes of device memory that a run may take by its plan; ``None`` for all that the device has.
    """

    variants = False
    files = False

    def __init__(self, engines: EnginePool, backend: DeviceBackend, threads: int, limit: int | None) -> None:
        self.threads = threads
        self._engines = engines
        self._backend = backend
        self._device = device = backend.device
        self._limit = device.total_bytes() if limit is None else limit
        self._copies = [(device.new_stream(), device.new_stream()) for _ in backend.lanes]
        self._fetch = device.new_stream()
        self._plans: OrderedDict[Shape, tuple[DevicePlan, StageQueue]] = OrderedDict()
        self._memory: tuple[int, int] = (0, 0)
        self._pinned: HostBytes = np.empty(0, np.uint8)
        self.kept = Kept()
        """What runs leave on the device for later ones."""

    def held_bytes(self, schedule: Schedule) -> None:
        """As :meth:`twoheads.runtime.execution.executor.Executor.held_bytes`."""

    @contextmanager
    def start(self, plan: RunPlan, tick: Tick | None) -> Generator[DeviceRun]:
        """As :meth:`twoheads.runtime.execution.executor.Executor.start`.

        Raises:
            InputError: The run does not fit into the device's memory, or needs what only the host has.
            DeviceError: The device failed.
        """
        with Crew(self.threads, tick) as crew:
            run = DeviceRun(plan.schedule, self._engines, crew, self._device, self._planned, self.kept)
            try:
                yield run
            finally:
                run.close()
        run.stores.close()

    def _planned(self, schedule: Schedule) -> tuple[DevicePlan, StageQueue]:
        """The plan of a schedule, made or found, and what queues its stages."""
        sizing = Sizing(schedule, self._engines, len(self._backend.lanes))
        shape = make_shape(sizing)
        found = self._plans.get(shape)
        if found is None:
            plan = make_plan(sizing, shape, self._limit, self._reserve)
            found = (plan, StageQueue(plan, self._engines, self._backend, self._copies, self._fetch))
            self._plans[shape] = found
            if len(self._plans) > PLANS:
                self._forget(next(iter(self._plans)))
        self._plans.move_to_end(shape)
        if found[0].streamed:
            self._drop_graphs()
        return found

    def _reserve(self, nbytes: int, pinned: int) -> tuple[int, HostBytes]:
        """Memory that all plans share; plans with addresses in memory that was too small are forgotten."""
        if nbytes > self._memory[1] or pinned > len(self._pinned):
            for shape in list(self._plans):
                self._forget(shape)
        if nbytes > self._memory[1]:
            if self._memory[1]:
                self._device.free(self._memory[0])
            self._memory = (0, 0)
            self._memory = (self._device.allocate(nbytes), nbytes)
        if pinned > len(self._pinned):
            self._pinned = np.empty(0, np.uint8)
            self._pinned = self._device.pinned(pinned)
        return self._memory[0], self._pinned

    def _drop_graphs(self) -> None:
        """Lets go of what was recorded: its engines will be closed. What was queued before is recorded again."""
        for plan, queue in self._plans.values():
            self._drop(plan)
            queue.forget_calls()

    def _drop(self, plan: DevicePlan) -> None:
        for recorded in plan.graphs.values():
            self._device.drop(recorded.graph)
        plan.graphs.clear()
        plan.runs = 0

    def _forget(self, shape: Shape) -> None:
        plan, _ = self._plans.pop(shape)
        self._drop(plan)
        if self.kept.plan is plan:
            self.kept.plan = None


def open_device(
    engines: EnginePool, *, threads: int, limit: int | None, host: tuple[int | None, Path | None]
) -> DeviceExecutor | None:
    """The executor of a backend that has a device; ``None`` for one that computes in the host's memory.

    Args:
        engines: The bundle's.
        threads: Of the host.
        limit: Bytes of device memory, or ``None``.
        host: A memory limit and a folder for files, which concern the host.

    Raises:
        InputError: The limits do not fit the backend, or the bundle needs what a device does not do.
    """
    backend = engines.backend
    if not isinstance(backend, DeviceBackend):
        if limit is not None:
            raise InputError("device_memory_limit", f"{backend.name} computes in the host's memory", "leave it out")
        return None
    if limit is not None and limit < 1:
        raise InputError("device_memory_limit", f"is {limit}", "give bytes, 1 or more")
    if host != (None, None):
        raise InputError(
            f"backend {backend.name}", "takes no memory limit and no files", "give device_memory_limit instead"
        )
    for mixture in engines.program.mixtures:
        problem = "gathers tokens by expert, which only the host does"
        raise InputError(f"stage {mixture.name}", problem, "use a backend of the processor, or compile --experts dense")
    for stage in engines.program.attentions:
        _check_attention(engines, stage)
    return DeviceExecutor(engines, backend, threads, limit)


def _check_attention(engines: EnginePool, stage: AttentionStage) -> None:
    where = f"stage {stage.name}"
    if stage.average is not None:
        raise InputError(where, "samples keys, which only the host does", "use a backend of the processor")
    if not isinstance(engines.program.engine(stage.engine), AttentionEngine):
        raise InputError(where, "is lowered to engines that the host feeds", "compile with --lowering tile")
