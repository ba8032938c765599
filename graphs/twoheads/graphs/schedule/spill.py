"""What of a run does not stay in memory, so that the rest fits into a limit; decided once, before the run starts.

Weights go first: a run visits each layer once, so its engines may be opened for it and let go behind it, at the price
of opening them again in the next run. Then values go to files, the largest first, all of one size together, until the
plan fits. A value in a file is mapped into memory, and its pages are let go behind whoever reads or writes it: of its
bytes only a window counts. What the system's page cache keeps of it beyond that is given up as soon as someone needs
the memory, and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from twoheads.graphs.costs.stage_costs import PAGE_BYTES, StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import ExpertsEngine, Stage
from twoheads.graphs.schedule.schedule import (
    MemoryPlan,
    Schedule,
    needed_stages,
    packing_bytes,
    workspace_bytes,
)

__all__ = ["NOTHING_SPILLED", "WINDOW_BYTES", "SpillPlan", "enough_text", "plan_spill"]

WINDOW_BYTES = 8 << 20
"""Bytes of a spilled value that may be touched before its pages are let go: an unmapping costs microseconds, and the
value's pages are mostly still in the page cache if they are touched again."""


@dataclass(frozen=True, slots=True)
class SpillPlan:
    """Where the values of a run live.

    Attributes:
        values: Names of the values that live in files.
        disk_bytes: The most bytes of such files that exist at the same time.
        memory: What remains in memory, by what holds it; ``None`` where nothing was asked for.
        limit: The limit that this fits into, in bytes; ``None`` for none.
        streamed: Whether weights are in memory for the stage that reads them only.
        ahead: Whether an engine is opened while the one before it computes; there is memory for the weights of both.
    """

    values: frozenset[str] = frozenset()
    disk_bytes: int = 0
    memory: MemoryPlan | None = None
    limit: int | None = None
    streamed: bool = False
    ahead: bool = False


NOTHING_SPILLED = SpillPlan()
"""All values in memory, whatever they take."""


def plan_spill(
    schedule: Schedule, *, limit: int | None, disk: bool, workers: int, held: int | None = None
) -> SpillPlan:
    """Decides which values live in files.

    Args:
        schedule: The run.
        limit: Bytes of memory that the run may take; ``None`` to spill all that can be.
        disk: Whether there is a folder to spill to.
        workers: Engine calls that run at the same time: each holds a tile of every value it reads and writes.
        held: Bytes of values in the memory of the machine that has the most of them, where several share a run and
            none has files; ``None`` for one machine, which has them all.

    Raises:
        InputError: The run does not fit, with what it takes and what would help.
    """
    if held is not None:
        schedule = replace(schedule, memory=replace(schedule.memory, values=held))
    costs = _Spilling(schedule, workers, held)
    plan = SpillPlan(memory=schedule.memory, limit=limit)
    if limit is not None and schedule.memory.total <= limit:
        return plan
    if limit is None:
        return costs.plan(costs.spillable, limit) if disk else plan
    plan = costs.plan(frozenset(), limit, streamed=costs.streams)
    if _total(plan) <= limit:
        return costs.ahead(plan)
    fullest = costs.plan(costs.spillable, limit, streamed=costs.streams)
    if not disk or _total(fullest) > limit:
        raise _refusal(schedule, fullest, limit, disk=disk)
    for names in costs.by_size():
        plan = costs.plan(plan.values | names, limit, streamed=costs.streams)
        if _total(plan) <= limit:
            break
    return costs.ahead(plan)


class _Spilling:
    """The run's memory with any set of values in files."""

    def __init__(self, schedule: Schedule, workers: int, held: int | None) -> None:
        program = schedule.program
        self._schedule, self._workers, self._held = schedule, workers, held
        self._costs = StageCosts(program, schedule.lengths, schedule.positions)
        self._body, self._head = needed_stages(program, schedule.output)
        released = [name for names in schedule.release_after.values() for name in names]
        values = [entry.value for entry in program.inputs]
        values += [value for stage in self._body for value in stage.outputs]
        self._kept = {value.name for value in values} - set(released)
        self._bytes = {value.name: self._costs.nbytes(value) for value in values}
        self._window = {
            value.name: WINDOW_BYTES + (workers + 1) * value.nbytes(program.key_tile)
            for value in values
            if value.axis is not None
        }
        self._phases, self._ahead = self._streamed_memory()
        self.streams = self._streamed(self._bytes).total < schedule.memory.total
        whole = _whole_values(self._body) | ({program.hidden} if schedule.output == "embedding" else set())
        large = {name for name, window in self._window.items() if name not in whole and window < self._bytes[name]}
        self.spillable = frozenset(large if held is None else ())

    def by_size(self) -> Iterable[frozenset[str]]:
        """The spillable values, those of the largest size first."""
        for size in sorted({self._bytes[name] for name in self.spillable}, reverse=True):
            yield frozenset(name for name in self.spillable if self._bytes[name] == size)

    def plan(self, spilled: frozenset[str], limit: int | None, *, streamed: bool = False) -> SpillPlan:
        """The plan with ``spilled`` in files, and with weights ``streamed``."""
        resident = self._resident(spilled)
        on_disk = {name: self._bytes[name] if name in spilled else 0 for name in self._bytes}
        memory = self._streamed(resident) if streamed else replace(self._schedule.memory, values=self._most(resident))
        return SpillPlan(spilled, self._peak(on_disk), memory, limit, streamed)

    def ahead(self, plan: SpillPlan) -> SpillPlan:
        """The same with each engine opened while the one before it computes, if that fits the limit."""
        if not plan.streamed or plan.memory is None or plan.limit is None:
            return plan
        memory = self._streamed(self._resident(plan.values), ahead=self._ahead)
        return replace(plan, memory=memory, ahead=True) if memory.total <= plan.limit else plan

    def _resident(self, spilled: frozenset[str]) -> dict[str, int]:
        """Bytes in memory of each value, with ``spilled`` in files."""
        return self._bytes | {name: self._window[name] for name in spilled}

    def _most(self, resident: Mapping[str, int]) -> int:
        """The most bytes of values that are in memory, where each has ``resident`` bytes."""
        return self._peak(resident) if self._held is None else self._held

    def _streamed(self, resident: Mapping[str, int], *, ahead: int = 0) -> MemoryPlan:
        """The larger plan of body and head, with ``resident`` bytes of values and ``ahead`` of the body's weights.

        Of the values those alone are left for the head that no stage of the body is the last to read.
        """
        left = sum(resident[name] for name in self._kept) if self._held is None else self._held
        body, *head = self._phases
        body = replace(body, values=self._most(resident), weights=max(body.weights, ahead))
        return max((body, *(replace(phase, values=left) for phase in head)), key=lambda plan: plan.total)

    def _streamed_memory(self) -> tuple[tuple[MemoryPlan, ...], int]:
        """The plans of body and head with the engines of one stage open at a time, of those that hold weights.

        The head is one stage. Beside them the bytes of the body's weights where an engine is opened while the one
        before it computes.
        """
        bound = {stage.name for stage, _ in self._schedule.program.bindings}
        weighted = [(stage,) for stage in self._body if stage.name in bound]
        # Such runs fetch the rows that tokens name alone.
        steps = [sum(self._costs.weights(step, mapped=True, around=2 * PAGE_BYTES).values()) for step in weighted]
        head = sum(self._costs.weights(self._head, mapped=True).values())
        program = self._schedule.program
        wanted = {stage.engine for stage in self._body}
        mixed = (e for e in program.engines if isinstance(e, ExpertsEngine) and e.name in wanted)
        # An expert's weights are let go behind it; those of the next one may be on their way.
        experts = [(1 + min(self._workers, engine.experts)) * engine.expert_bytes for engine in mixed]
        sizes = [*steps, head]
        both = [one + following for one, following in pairwise(sizes)]
        largest = max(experts, default=0)
        ahead = max([*both, *sizes, largest + max(sizes)] if experts else [*both, *sizes])
        # What an engine packs while it opens takes no memory of calls, as these are being made.
        ahead += packing_bytes([max(sizes)])
        memory = self._schedule.memory
        workspace = workspace_bytes(self._costs, self._body, self._workers)
        phases = [replace(memory, weights=max([*steps, largest]), workspace=workspace)]
        if self._head:
            workspace = workspace_bytes(self._costs, self._head, self._workers, self._schedule.positions)
            process = memory.process
            if any(isinstance(stage, ColumnsStage) for stage in self._head):  # a piece is all that may be packed
                packed = self._costs.weights((*self._body, *self._head), mapped=True).values()
                process += packing_bytes([head]) - packing_bytes(packed)
            phases.append(replace(memory, weights=head, workspace=workspace, process=process))
        return tuple(phases), ahead

    def _peak(self, sizes: Mapping[str, int]) -> int:
        return self._costs.liveness(self._body, self._kept, sizes)[1]


def _whole_values(stages: Iterable[Stage]) -> set[str]:
    """Values that the host reads or writes as a whole: letting their pages go would not help."""
    moving = [stage for stage in stages if stage.on_host]
    return {name for stage in moving for name in (*stage.inputs, *(value.name for value in stage.outputs))}


def _total(plan: SpillPlan) -> int:
    return 0 if plan.memory is None else plan.memory.total


def _refusal(schedule: Schedule, fullest: SpillPlan, limit: int, *, disk: bool) -> InputError:
    needs = f"the run of {schedule.length} tokens needs {enough_text(schedule.memory.total)} of memory"
    least = enough_text(_total(fullest))
    spilling = f"{least} with {enough_text(fullest.disk_bytes)} of values on disk"
    if not disk and _total(fullest) <= limit:
        return InputError(f"memory limit {enough_text(limit)}", needs, f"give --spill DIR: then it needs {spilling}")
    memory = fullest.memory or schedule.memory
    parts = (
        f"values {enough_text(memory.values)}, weights {enough_text(memory.weights)}, workspace "
        f"{enough_text(memory.workspace)}, process {enough_text(memory.process)}"
    )
    problem = (
        f"{needs}, and {spilling} ({parts})" if fullest.values else f"{needs} ({parts}), and nothing can be spilled"
    )
    return InputError(f"memory limit {enough_text(limit)}", problem, f"allow {least}, or use fewer --threads")


def enough_text(size: float) -> str:
    """Bytes with a decimal prefix: ``4.1 GB``; rounded up, so that a limit of that size is enough."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{-(-size * 10 // scale) / 10:.1f} {unit}"
    return f"{size:.0f} bytes"
