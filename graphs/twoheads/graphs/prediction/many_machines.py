"""How long a run will take on several machines, what each of them computes, reads and holds, and what it costs.

The model is that of the schedule's placement (:mod:`twoheads.graphs.schedule.placement`): stages one after the other,
each as long as its slowest worker, which first reads what others hold and then computes. Nothing overlaps, so the
prediction is on the safe side.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.one_machine import touch_seconds
from twoheads.graphs.prediction.stage_times import StageTimes, WorkerSeconds
from twoheads.graphs.prediction.worker_holdings import Holdings, worker_holdings
from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.placement import Placement, place
from twoheads.graphs.schedule.schedule import Schedule, needed_stages

__all__ = ["WorkersPlan", "plan_workers"]

Bytes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WorkersPlan:
    """A run on ``workers`` machines of ``threads`` threads.

    Attributes:
        workers, threads: See above.
        calls: Engine calls of the worker that makes most.
        read_bytes: Of the worker that reads most from others.
        sent_bytes: To others, of a worker on average; what all read is what all send.
        copied_bytes: Of the worker that copies most, so that what another one computed survives its loss.
        memory_bytes: Peak memory of the worker that needs most.
        seconds: The critical path: of each stage its slowest worker, transfers included.
        transfer_seconds: The part of it that is reading, copying and starting stages.
        work_seconds: What all workers compute together.
        cost: By the profile's price; ``None`` if it has none.
    """

    workers: int
    threads: int
    calls: int
    read_bytes: int
    sent_bytes: int
    copied_bytes: int
    memory_bytes: int
    seconds: float
    transfer_seconds: float
    work_seconds: float
    cost: float | None

    @property
    def efficiency(self) -> float:
        """The share of the workers' time in which they compute; 1 at best."""
        return self.work_seconds / (self.workers * self.seconds)


def plan_workers(schedule: Schedule, profile: DeviceProfile, workers: int, threads: int) -> WorkersPlan:
    """Predicts a run of ``schedule`` on ``workers`` machines like that of ``profile``.

    On one worker nothing travels, and the prediction is that of
    :func:`~twoheads.graphs.prediction.one_machine.predict_run`.

    Raises:
        InputError: There are no workers, or the profile lacks an engine that the run calls.
    """
    planning = _Planning(schedule, profile, workers, threads)
    return planning.plan()


class _Planning:
    """The run's stages on one number of workers."""

    def __init__(self, schedule: Schedule, profile: DeviceProfile, workers: int, threads: int) -> None:
        self._schedule, self._profile, self._workers, self._threads = schedule, profile, workers, threads
        self._times = StageTimes(schedule, profile)
        body, head = needed_stages(schedule.program, schedule.output)
        self._stages = (*body, *head)
        self._placement: Placement = place(schedule, workers, self._call_seconds())
        self._placed = {stage.name: stage for stage in self._placement.stages}
        self._seconds: dict[Hashable, WorkerSeconds] = {}

    def plan(self) -> WorkersPlan:
        seconds = transfer = work = 0.0
        holdings = worker_holdings(self._placement)
        for stage in self._stages:
            found = self._of_workers(stage)
            reading = self._reading(self._placed[stage.name].read_bytes)
            stage_seconds = float((found.until + reading).max())
            if stage.name in holdings.copied:
                stage_seconds += float(self._reading(holdings.copied[stage.name]).max())
            transfer += stage_seconds - float(found.until.max())
            seconds += stage_seconds + self._times.once(stage)
            work += float(found.work.sum())
        seconds += touch_seconds(self._schedule, self._profile, self._threads) / self._workers
        read = np.sum([stage.read_bytes for stage in self._placed.values()], axis=0)
        read = read if self._workers > 1 else np.zeros_like(read)
        copied = np.sum([*holdings.copied.values(), np.zeros(self._workers, np.int64)], axis=0)
        price = self._profile.price_per_hour
        return WorkersPlan(
            workers=self._workers,
            threads=self._threads,
            calls=int(np.sum([stage.calls for stage in self._placed.values()], axis=0).max()),
            read_bytes=int(read.max()),
            sent_bytes=int(read.sum()) // self._workers,
            copied_bytes=int(copied.max()),
            memory_bytes=self._memory(holdings),
            seconds=seconds,
            transfer_seconds=transfer,
            work_seconds=work,
            cost=None if price is None else price * self._workers * seconds / 3600,
        )

    def _call_seconds(self) -> dict[str, float]:
        """The mean of a call by engine name: what the placement balances."""
        seconds: dict[str, float] = {}
        calls: dict[str, int] = {}
        for plan, stage in zip(self._schedule.stages, self._stages, strict=True):
            if plan.calls:
                blocks = float(self._times.blocks(stage, self._threads).sum())
                seconds[plan.engine] = seconds.get(plan.engine, 0.0) + blocks
                calls[plan.engine] = calls.get(plan.engine, 0) + plan.calls
        return {engine: seconds[engine] / calls[engine] for engine in seconds}

    def _of_workers(self, stage: Stage) -> WorkerSeconds:
        owner = self._placed[stage.name].owner
        key = self._times.kind(stage), id(owner)
        if key not in self._seconds:
            self._seconds[key] = self._times.of_workers(stage, owner, self._workers, self._threads)
        return self._seconds[key]

    def _reading(self, size: Bytes) -> npt.NDArray[np.float64]:
        """Seconds until every worker has ``size`` bytes of others."""
        if self._workers == 1:
            return np.zeros(1)
        network = self._profile.network
        return network.round_seconds + size / network.bytes_per_second

    def _memory(self, holdings: Holdings) -> int:
        """The most of one worker; on one that of a run without workers, where nothing is held twice."""
        memory = self._schedule.memory
        if self._workers == 1:
            return memory.total
        return int(holdings.peak.max()) + memory.weights + memory.workspace + memory.process
