"""How long a run will take on one machine: a schedule's stages one after the other, from a device's profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.stage_times import StageTimes
from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.schedule import Schedule, needed_stages

__all__ = ["RunTime", "StageTime", "open_seconds", "predict_run", "touch_seconds"]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Predicted wall time of one stage, in seconds; names and calls as in the schedule."""

    name: str
    kind: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunTime:
    """Predicted wall time of a run on one machine.

    Attributes:
        threads: Workers.
        stages: As in the schedule.
        touch_seconds: For the first touch of the memory that holds values, which the system zeroes.
        open_seconds: To open the engines, which only a process's first run does; a report's ``prepare_seconds``.
    """

    threads: int
    stages: tuple[StageTime, ...]
    touch_seconds: float
    open_seconds: float

    @property
    def seconds(self) -> float:
        """The run without opening engines: a report's ``seconds``."""
        return sum(stage.seconds for stage in self.stages) + self.touch_seconds


def predict_run(schedule: Schedule, profile: DeviceProfile, threads: int) -> RunTime:
    """Predicts a run of ``schedule`` with ``threads`` workers.

    Raises:
        InputError: The profile lacks an engine that the run calls.
    """
    body, head = needed_stages(schedule.program, schedule.output)
    times = StageTimes(schedule, profile)
    plans = {plan.name: plan for plan in schedule.stages}
    stages: list[StageTime] = []
    for stage in (*body, *head):
        plan = plans[stage.name]
        alone = np.zeros(len(times.blocks(stage, 1)), np.int64)
        seconds = times.once(stage) + float(times.of_workers(stage, alone, 1, threads).until[0])
        stages.append(StageTime(plan.name, plan.kind, plan.calls, seconds))
    touch = touch_seconds(schedule, profile, threads)
    opening = open_seconds((*body, *head), profile, threads, variant=times.variant)
    return RunTime(threads, tuple(stages), touch, opening)


def touch_seconds(schedule: Schedule, profile: DeviceProfile, threads: int) -> float:
    """Seconds for the first touch of memory: of the values that are alive together, and of the head's rows."""
    _, head = needed_stages(schedule.program, schedule.output)
    rows = sum(plan.outputs_bytes for plan in schedule.stages[len(schedule.stages) - len(head) :])
    return (schedule.memory.values + rows) / profile.fresh_bytes_per_second / threads


def open_seconds(stages: tuple[Stage, ...], profile: DeviceProfile, threads: int, *, variant: str = "") -> float:
    """Seconds to open the engines of ``stages`` in ``threads`` threads: each once for every set of weights.

    ``variant`` is that of the token-wise engines.
    """
    opened = {(stage.engine, stage.weights) for stage in stages if not stage.on_host and not stage.tiled}
    seconds = [times.open_seconds for engine, _ in opened if (times := profile.times(engine, variant)) is not None]
    attentions = {stage.engine for stage in stages if stage.tiled}
    seconds += [times.open_seconds for times in profile.engines if times.engine in attentions]
    return max(sum(seconds) / threads, max(seconds, default=0.0))
