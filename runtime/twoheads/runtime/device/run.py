"""One run on a device: inputs in, stages queued or replayed, wanted rows out; see ``execution/executor.py``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import (
    AttentionStage,
    ExpertsStage,
    Pooling,
    ScanEngine,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseStage,
)
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.backends.cuda_driver import DeviceError
from twoheads.runtime.backends.device_protocol import Device, Rows
from twoheads.runtime.device.head import run_device_head
from twoheads.runtime.device.plan import DevicePlan, Recorded
from twoheads.runtime.device.queued_stages import StageQueue
from twoheads.runtime.device.transfers import Transfers
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.execution.weight_stream import WeightStream
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.stages.pooling import pool, pooled_rows
from twoheads.runtime.stages.sequence import fill_sequence

__all__ = ["DeviceRun", "Kept"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Kept:
    """What a run leaves on the device for the next one.

    Attributes:
        plan: Whose masks, sinks and numbers of real tokens are there; ``None`` for none.
        lengths: For inputs of which lengths they are.
        captures: Whether work can be recorded into graphs.
        replays: Times that a graph was replayed.
    """

    plan: DevicePlan | None = None
    lengths: dict[str, int] = field(default_factory=dict[str, int])
    captures: bool = True
    replays: int = 0


class DeviceRun(RunState):
    """A run whose values are on the device; only inputs and wanted rows cross over.

    Args:
        schedule: The program that runs, expanded for the input.
        engines: Open engines.
        crew: The workers.
        device: Where it runs.
        planned: Gives the plan of a schedule and what queues its stages.
        kept: What earlier runs left there.
    """

    def __init__(
        self,
        schedule: Schedule,
        engines: EnginePool,
        crew: Crew,
        device: Device,
        planned: Callable[[Schedule], tuple[DevicePlan, StageQueue]],
        kept: Kept,
    ) -> None:
        super().__init__(schedule, engines, crew)
        self._device = device
        self._planned = planned
        self._kept = kept
        self._held = 0
        self._stream: WeightStream | None = None
        self._plan: DevicePlan
        self._queue: StageQueue
        self._transfers: Transfers

    def prepare(self) -> None:
        """Opens the engines; where their weights do not fit on the device at once, each is opened for its stage.

        Raises:
            InputError: The run does not fit into the device's memory.
        """

        def open_engine(stage: Stage) -> None:
            if isinstance(stage, TokenwiseStage):
                self.engines.tokenwise(stage)
            elif isinstance(stage, AttentionStage):
                for variant in ("full", "masked"):
                    self.engines.attention(stage.engine, variant)
            elif isinstance(stage, ScanStage):
                for variant in ScanEngine.VARIANTS:
                    self.engines.attention(stage.engine, variant)

        body, head = needed_stages(self.program, self.schedule.output)
        self._plan, self._queue = self._planned(self.schedule)
        stages = [*body, *head]
        if self._plan.streamed:
            self._stream = WeightStream(self.engines)
            stages = self._stream.begin(body, head)
        self.crew.run(stages, lambda: open_engine)

    def body(self, inputs: Mapping[str, Array]) -> None:
        """Copies the inputs to the device and computes the body there.

        Raises:
            DeviceError: The device failed.
        """
        self._transfers = Transfers(self._device, self._queue.main, self.program.block_size)
        self._held = self._plan.device_bytes + self._plan.layout.host_bytes
        self.stores.account(self._held)
        for entry in self.program.inputs:
            value = self._plan.values[entry.value.name]
            store = self._transfers.store(value, self.schedule.value_rows(entry.value))
            store.fill(inputs[entry.value.name])
            self._transfers.write(value, store)
        self._upload()
        for at, segment in enumerate(self._plan.segments):
            self._segment(at, segment)
        self._plan.runs += 1

    def close(self) -> None:
        """Ends the run, however far it came."""
        if self._held:
            self._transfers.finish()
            self.stores.account(-self._held)
        if self._stream is not None:
            self._device.synchronize()
            self._queue.forget_calls()
            self._stream.end()

    def row_value(self, name: str) -> Array:
        return self._transfers.read(self._plan.values[name], 1).whole()

    def embedding(self, pooling: Pooling) -> Array:
        hidden = self._plan.values[self.program.hidden]
        length = self.schedule.value_rows(hidden.value)
        return pool(self._transfers.rows(hidden, pooled_rows(pooling, length)), pooling)

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> Array | None:
        if self.schedule.positions:
            self._enter(needed_stages(self.program, self.schedule.output)[1])
            return run_device_head(self, self._queue, self._transfers, positions, sink)
        hidden, size = self._plan.values[self.program.hidden], self.program.block_size
        rows = range(self.schedule.value_rows(hidden.value)) if positions is None else positions
        if sink is None:
            return self._transfers.rows(hidden, rows).astype(np.float32, copy=False)
        for start in range(0, len(rows), size):
            block = self._transfers.rows(hidden, rows[start : start + size])
            sink.write(start, block.astype(np.float32, copy=False))
        return None

    def _upload(self) -> None:
        """Copies numbers of real tokens, masks and sinks, those that are not there yet."""
        plan, transfers, schedule, kept = self._plan, self._transfers, self.schedule, self._kept
        padded = kept.plan is plan
        if padded and kept.lengths == schedule.lengths:
            return
        kept.plan = None
        for value in plan.values.values():
            if value.value.axis is not None:
                real = schedule.value_rows(value.value) - (value.tiles - 1) * value.tile_tokens
                address = plan.beside.reals[value.value.axis, value.tile_tokens]
                transfers.upload(Rows(address, 4), np.array([real], np.int32))
        attentions = {stage.name: stage for stage in self.program.attentions}
        done: set[int] = set()
        for name, slots in plan.masks.items():
            if plan.beside.masks[name] not in done:
                done.add(plan.beside.masks[name])
                length = schedule.value_rows(plan.values[attentions[name].key].value)
                for slot, tile in slots.contents(length, padded=padded):
                    transfers.upload(self._queue.mask_slot(name, slot).rows, tile)
        for name, sinks in plan.beside.sinks.items():
            logits = self.engines.weights.view(attentions[name].sinks or "").astype(np.float32)
            transfers.upload(sinks.rows, np.ascontiguousarray(np.broadcast_to(logits[:, None], sinks.shape)))
        weights = {stage.name: stage.weights for stage in self.program.scans}
        for name, arrays in plan.beside.weights.items():
            for array, weight in zip(arrays, weights[name], strict=True):
                transfers.upload(array.rows, np.ascontiguousarray(self.engines.weights.view(weight)))
        kept.plan, kept.lengths = plan, dict(schedule.lengths)

    def _segment(self, at: int, segment: tuple[Stage, ...]) -> None:
        first, plan = segment[0], self._plan
        if isinstance(first, SequenceStage):
            self._sequence(first)
            return
        recorded = plan.graphs.get(at)
        if recorded is None and plan.runs and self._kept.captures and not plan.streamed:
            recorded = self._record(segment)
        if recorded is None:
            self._count(self._queued(segment))
            return
        plan.graphs[at] = recorded
        self._device.replay(recorded.graph, self._queue.main)
        self._kept.replays += 1
        self._count(recorded.calls)

    def _record(self, segment: tuple[Stage, ...]) -> Recorded | None:
        """Records the stages, which are not run; ``None`` if the backend does what no graph can hold."""
        self._device.synchronize()
        self._device.begin_capture(self._queue.main)
        try:
            calls = self._queued(segment)
            return Recorded(self._device.end_capture(self._queue.main), calls)
        except DeviceError as error:
            self._device.abandon_capture(self._queue.main)
            self._kept.captures = False
            logger.warning("no CUDA graphs, as recording one failed; calls are queued one by one: %s", error)
            return None
        except BaseException:
            self._device.abandon_capture(self._queue.main)
            raise

    def _queued(self, segment: tuple[Stage, ...]) -> dict[str, int]:
        """Queues the stages; their engine calls by name."""
        calls: dict[str, int] = {}
        for stage in segment:
            self.crew.check()
            if isinstance(stage, SequenceStage | ExpertsStage):
                raise InternalError(f"stage {stage.name} is the host's")
            if isinstance(stage, TokenwiseStage):
                self._enter((stage,))
            calls[stage.name] = self._queue.stage(stage)
        return calls

    def _enter(self, stages: Sequence[Stage]) -> None:
        """Opens the engines of the next stages, where they stream; what the device still reads is not let go."""
        if self._stream is not None:
            self._device.synchronize()
            self._queue.forget_calls()
            self._stream.enter(stages)

    def _count(self, calls: Mapping[str, int]) -> None:
        chained = {stage.name for stage in self.program.scans}
        for name, count in calls.items():
            self.counters[name].worker().calls += count
            self.rounds += count if name in chained else 1

    def _sequence(self, stage: SequenceStage) -> None:
        """Computes ``stage`` on the host, from and to the device."""
        values, sizes, transfers = self._plan.values, self.schedule.value_rows, self._transfers
        inputs = [transfers.read(values[name], sizes(values[name].value)).whole() for name in stage.inputs]
        store = transfers.store(values[stage.output.name], sizes(stage.output))
        fill_sequence(stage, inputs, store)
        transfers.write(values[stage.output.name], store)
