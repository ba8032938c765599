"""Run the head on selected rows of the hidden states, block by block on the first lane; only its result crosses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TokenwiseStage
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.runtime.backends.device_protocol import DeviceArray, Rows
from twoheads.runtime.backends.protocol import Call
from twoheads.runtime.device.lanes import Desk
from twoheads.runtime.device.queued_stages import StageQueue, device_engine
from twoheads.runtime.device.transfers import Transfers, neighbours
from twoheads.runtime.device.values import DeviceValue
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.sink import Sink

__all__ = ["run_device_head"]


def run_device_head(
    run: RunState,
    queue: StageQueue,
    transfers: Transfers,
    positions: npt.NDArray[np.int64] | None,
    sink: Sink | None,
) -> npt.NDArray[Any] | None:
    """As :func:`~twoheads.runtime.stages.head.run_head`."""
    head = _Head(run, queue, transfers)
    hidden = queue.plan.values[run.program.hidden]
    rows = run.schedule.value_rows(hidden.value) if positions is None else len(positions)
    size = run.program.block_size
    result = np.empty((rows if sink is None else min(rows, size), head.width), head.logits.dtype)
    queue.team.fork()
    for start in range(0, rows, size):
        run.crew.check()
        stop = min(start + size, rows)
        part = result[start:stop] if sink is None else result[: stop - start]
        head.block(hidden, start // size, None if positions is None else positions[start:stop], part)
        if sink is not None:
            transfers.finish()
            sink.write(start, part.astype(np.float32, copy=False))
    queue.team.join()
    transfers.finish()
    run.rounds += len(head.stages)
    return result.astype(np.float32, copy=False) if sink is None else None


class _Head:
    """The head's calls, their buffers bound for good but the one of the hidden rows."""

    def __init__(self, run: RunState, queue: StageQueue, transfers: Transfers) -> None:
        self.stages: tuple[TokenwiseStage, ...] = tuple(
            stage for stage in needed_stages(run.program, run.schedule.output)[1] if isinstance(stage, TokenwiseStage)
        )
        if run.program.logits not in queue.plan.beside.head:
            raise InternalError(f"the head of {run.program.name} does not compute {run.program.logits!r}")
        buffers = queue.plan.beside.head
        self.logits = buffers[run.program.logits]
        self.width = self.logits.shape[-1]
        self._packed = buffers[run.program.hidden]
        self._transfers = transfers
        self._desk = Desk(queue.lanes[0])
        self._ports: list[tuple[Call, int]] = []
        self._calls: list[Call] = []
        self._counts = [run.counters[stage.name].worker() for stage in self.stages]
        for stage in self.stages:
            call = device_engine(run.engines.tokenwise(stage)).new_call(0)
            self._calls.append(call)
            for port, name in enumerate(stage.inputs):
                if name == run.program.hidden:
                    self._ports.append((call, port))
                else:
                    call.bind_input(port, buffers[name])
            for port, value in enumerate(stage.outputs):
                call.bind_output(port, buffers[value.name])

    def block(
        self, hidden: DeviceValue, block: int, positions: npt.NDArray[np.int64] | None, target: npt.NDArray[Any]
    ) -> None:
        """Queues one block of rows, and the copy of its logits to ``target``."""
        self._desk.begin()
        rows = self._desk.read(hidden, block) if positions is None else self._pack(hidden, positions)
        self._desk.loaded()
        for call, port in self._ports:
            call.bind_input(port, rows)
        for call, count in zip(self._calls, self._counts, strict=True):
            call.run()
            count.calls += 1
        self._transfers.download(target, Rows(self.logits.address, target.nbytes))
        self._desk.done()

    def _pack(self, hidden: DeviceValue, positions: npt.NDArray[np.int64]) -> DeviceArray:
        """The rows ``positions`` in a block; what is left behind them does not matter: the head is token-wise."""
        address = self._packed.address
        for start, stop in neighbours(positions):
            source = hidden.token_rows(start, stop)
            self._transfers.device.copy(Rows(address, source.width), source, self._transfers.stream)
            address += source.width
        return self._packed
