"""Run schedules on a device: what :func:`twoheads.runtime.runs.host_executor.compute` is for the host."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import AttentionStage, SequenceStage, Stage, TokenwiseStage
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.runtime.backends.cuda_driver import DeviceError
from twoheads.runtime.backends.device_protocol import HostBytes, Rows
from twoheads.runtime.backends.protocol import DeviceBackend
from twoheads.runtime.device.head import run_device_head
from twoheads.runtime.device.plan import DevicePlan, Recorded, Shape, Sizing, make_plan, make_shape
from twoheads.runtime.device.stages import StageQueue
from twoheads.runtime.device.transfers import Transfers
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.finite_rows import WatchedSink
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.stages.pooling import pool
from twoheads.runtime.stages.sequence import fill_sequence

__all__ = ["DeviceExecutor", "open_device"]

logger = logging.getLogger(__name__)

PLANS = 4
"""Numbers of blocks whose plans and graphs are kept, those used last."""


class DeviceExecutor:
    """Runs one bundle's schedules on a backend's device, one at a time.

    The first run of a shape queues its work call by call, the second records it while it does so, and later ones replay
    it: a length that occurs once is not worth a graph. Where recording fails, every run queues its calls.

    Args:
        engines: The bundle's engines, of ``backend``.
        backend: The device's.
        limit: Bytes of device memory that a run may take by its plan; ``None`` for all that the device has.
    """

    def __init__(self, engines: EnginePool, backend: DeviceBackend, limit: int | None) -> None:
        self._engines = engines
        self._backend = backend
        self._device = device = backend.device
        self._limit = device.total_bytes() if limit is None else limit
        self._copies = [(device.new_stream(), device.new_stream()) for _ in backend.lanes]
        self._fetch = device.new_stream()
        self._plans: OrderedDict[Shape, tuple[DevicePlan, StageQueue]] = OrderedDict()
        self._memory: tuple[int, int] = (0, 0)
        self._pinned: HostBytes = np.empty(0, np.uint8)
        self._uploaded: tuple[DevicePlan, dict[str, int]] | None = None
        self._captures = True
        self.replays = 0
        """Times that a graph was replayed."""

    def prepare(self, run: RunState) -> float:
        """Opens the engines that the run needs and that are not open yet; returns the seconds it took."""
        began = time.perf_counter()
        body, head = needed_stages(run.program, run.schedule.output)

        def open_engine(stage: Stage) -> None:
            if isinstance(stage, TokenwiseStage):
                self._engines.tokenwise(stage)
            elif isinstance(stage, AttentionStage):
                for variant in ("full", "masked"):
                    self._engines.attention(stage.engine, variant)

        run.crew.run((*body, *head), lambda: open_engine)
        return time.perf_counter() - began

    def compute(
        self,
        run: RunState,
        inputs: Mapping[str, npt.NDArray[Any]],
        positions: npt.NDArray[np.int64] | None,
        sink: Sink | None,
    ) -> npt.NDArray[Any] | None:
        """As :func:`~twoheads.runtime.runs.host_executor.compute`; only inputs and wanted rows cross over.

        Raises:
            InputError: The run does not fit into the device's memory, or needs what only the host has.
            DeviceError: The device failed.
        """
        sizing = Sizing(run.schedule, self._engines, len(self._backend.lanes))
        plan, queue = self._plan(sizing)
        held = plan.device_bytes + plan.layout.host_bytes
        run.stores.account(held)
        transfers = Transfers(self._device, queue.main, run.program.block_size)
        try:
            self._upload(run, plan, queue, transfers, inputs)
            for at, segment in enumerate(plan.segments):
                self._segment(run, plan, queue, transfers, at, segment)
            plan.runs += 1
            watched = None if sink is None else WatchedSink(sink, run.finite)
            result = _result(run, queue, transfers, positions, watched)
            if result is not None:
                run.finite.see(result if result.ndim > 1 else result[None])
            return result
        finally:
            transfers.finish()
            run.stores.account(-held)

    def _plan(self, sizing: Sizing) -> tuple[DevicePlan, StageQueue]:
        shape = make_shape(sizing)
        found = self._plans.get(shape)
        if found is None:
            plan = make_plan(sizing, shape, self._limit, self._reserve)
            found = (plan, StageQueue(plan, self._engines, self._backend, self._copies, self._fetch))
            self._plans[shape] = found
            if len(self._plans) > PLANS:
                self._forget(next(iter(self._plans)))
        self._plans.move_to_end(shape)
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

    def _forget(self, shape: Shape) -> None:
        plan, _ = self._plans.pop(shape)
        for recorded in plan.graphs.values():
            self._device.drop(recorded.graph)
        if self._uploaded is not None and self._uploaded[0] is plan:
            self._uploaded = None

    def _upload(
        self,
        run: RunState,
        plan: DevicePlan,
        queue: StageQueue,
        transfers: Transfers,
        inputs: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Copies inputs, numbers of real tokens, masks and sinks, those that are not there yet."""
        schedule = run.schedule
        for entry in run.program.inputs:
            value = plan.values[entry.value.name]
            store = transfers.store(value, schedule.value_rows(entry.value))
            store.fill(inputs[entry.value.name])
            transfers.write(value, store)
        before = self._uploaded if self._uploaded is not None and self._uploaded[0] is plan else None
        if before is not None and before[1] == schedule.lengths:
            return
        self._uploaded = None
        for value in plan.values.values():
            if value.value.axis is not None:
                real = schedule.value_rows(value.value) - (value.tiles - 1) * value.tile_tokens
                address = plan.beside.reals[value.value.axis, value.tile_tokens]
                transfers.upload(Rows(address, 4), np.array([real], np.int32))
        attentions = {stage.name: stage for stage in run.program.body if isinstance(stage, AttentionStage)}
        done: set[int] = set()
        for name, slots in plan.masks.items():
            if plan.beside.masks[name] not in done:
                done.add(plan.beside.masks[name])
                length = schedule.value_rows(plan.values[attentions[name].key].value)
                for slot, tile in slots.contents(length, padded=before is not None):
                    transfers.upload(queue.mask_slot(name, slot).rows, tile)
        for name, sinks in plan.beside.sinks.items():
            logits = self._engines.weights.view(attentions[name].sinks or "").astype(np.float32)
            transfers.upload(sinks.rows, np.ascontiguousarray(np.broadcast_to(logits[:, None], sinks.shape)))
        self._uploaded = (plan, dict(schedule.lengths))

    def _segment(
        self,
        run: RunState,
        plan: DevicePlan,
        queue: StageQueue,
        transfers: Transfers,
        at: int,
        segment: tuple[Stage, ...],
    ) -> None:
        first = segment[0]
        if isinstance(first, SequenceStage):
            _run_sequence(run, plan, transfers, first)
            return
        recorded = plan.graphs.get(at)
        if recorded is None and plan.runs and self._captures:
            recorded = self._record(run, queue, segment)
        if recorded is None:
            _count(run, _queue(run, queue, segment))
            return
        plan.graphs[at] = recorded
        self._device.replay(recorded.graph, queue.main)
        self.replays += 1
        _count(run, recorded.calls)

    def _record(self, run: RunState, queue: StageQueue, segment: tuple[Stage, ...]) -> Recorded | None:
        """Records the stages, which are not run; ``None`` if the backend does what no graph can hold."""
        self._device.synchronize()
        self._device.begin_capture(queue.main)
        try:
            calls = _queue(run, queue, segment)
            return Recorded(self._device.end_capture(queue.main), calls)
        except DeviceError as error:
            self._device.abandon_capture(queue.main)
            self._captures = False
            logger.warning("no CUDA graphs, as recording one failed; calls are queued one by one: %s", error)
            return None
        except BaseException:
            self._device.abandon_capture(queue.main)
            raise


def open_device(
    engines: EnginePool, *, limit: int | None, host: tuple[int | None, Path | None]
) -> DeviceExecutor | None:
    """The executor of a backend that has a device; ``None`` for one that computes in the host's memory.

    Args:
        engines: The bundle's.
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
    for stage in engines.program.body:
        if isinstance(stage, AttentionStage):
            _check_attention(engines, stage)
    return DeviceExecutor(engines, backend, limit)


def _check_attention(engines: EnginePool, stage: AttentionStage) -> None:
    where = f"stage {stage.name}"
    if stage.average is not None:
        raise InputError(where, "samples keys, which only the host does", "use a backend of the processor")
    if engines.stock_engine(stage.engine) is not None or engines.oracle_engine(stage.engine) is not None:
        raise InputError(where, "is lowered to engines that the host feeds", "compile with --lowering tile")


def _queue(run: RunState, queue: StageQueue, segment: tuple[Stage, ...]) -> dict[str, int]:
    """Queues the stages; their engine calls by name."""
    calls: dict[str, int] = {}
    for stage in segment:
        run.crew.check()
        if isinstance(stage, SequenceStage):
            raise InternalError(f"stage {stage.name} is the host's")
        calls[stage.name] = queue.stage(stage)
    return calls


def _count(run: RunState, calls: Mapping[str, int]) -> None:
    for name, count in calls.items():
        run.counters[name].worker().calls += count
        run.rounds += 1


def _run_sequence(run: RunState, plan: DevicePlan, transfers: Transfers, stage: SequenceStage) -> None:
    """Computes ``stage`` on the host, from and to the device."""
    sizes = run.schedule.value_rows
    inputs = [transfers.read(plan.values[name], sizes(plan.values[name].value)).whole() for name in stage.inputs]
    store = transfers.store(plan.values[stage.output.name], sizes(stage.output))
    fill_sequence(stage, inputs, store)
    transfers.write(plan.values[stage.output.name], store)


def _result(
    run: RunState,
    queue: StageQueue,
    transfers: Transfers,
    positions: npt.NDArray[np.int64] | None,
    sink: Sink | None,
) -> npt.NDArray[Any] | None:
    """The schedule's output, from the device's values."""
    schedule, program = run.schedule, run.program
    if schedule.output == "logits" and program.logits is not None and program.pooled_logits:
        return transfers.read(queue.plan.values[program.logits], 1).whole().reshape(-1).astype(np.float32)
    hidden = queue.plan.values[program.hidden]
    length = schedule.value_rows(hidden.value)
    if schedule.output in ("logits", "last"):
        wanted = np.array([length - 1]) if schedule.output == "last" else positions
        return run_device_head(run, queue, transfers, wanted, sink)
    if schedule.output == "embedding":
        if program.pooling is None:
            raise InternalError(f"{program.name} has no pooling")
        ends = {"cls": (0, 1), "last": (length - 1, length)}.get(program.pooling.mode, (0, length))
        return pool(transfers.rows(hidden, range(*ends)), program.pooling)
    rows = range(length) if positions is None else positions
    if sink is None:
        return transfers.rows(hidden, rows).astype(np.float32, copy=False)
    for start in range(0, len(rows), program.block_size):
        block = transfers.rows(hidden, rows[start : start + program.block_size])
        sink.write(start, block.astype(np.float32, copy=False))
    return None
