"""What the stages of one run share, and the counters that the report is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.tiles import Segment
from twoheads.graphs.program.program import AttentionStage, Stage, Value
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.variants.packing import Packing
from twoheads.runtime.execution.companion import Checkpointing, Companion, Tokens
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.stores import Stores, ValueStore
from twoheads.runtime.reports.report import Counted, StageReport
from twoheads.runtime.reports.sampling import StageEstimate

__all__ = ["RunState", "StageCounter", "WorkerCount"]

T = TypeVar("T")
Row = tuple[int, tuple[Segment, ...]]


@dataclass(slots=True)
class WorkerCount:
    """What one worker did in one stage; only that worker writes it, so no lock is needed."""

    calls: int = 0
    repeats: int = 0
    seconds: float = 0.0


class StageCounter:
    """Calls and time of one stage."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.seconds = 0.0
        self._workers: list[WorkerCount] = []

    def worker(self) -> WorkerCount:
        """A count for one more worker."""
        count = WorkerCount()
        self._workers.append(count)
        return count

    def restore(self, calls: int, repeats: int, seconds: float) -> None:
        """Adds what an earlier process did."""
        self._workers.append(WorkerCount(calls, repeats))
        self.seconds += seconds

    def reset(self) -> None:
        """Forgets everything: the stage begins anew."""
        self._workers.clear()
        self.seconds = 0.0

    @property
    def calls(self) -> int:
        """Engine calls so far."""
        return sum(worker.calls for worker in self._workers)

    @property
    def repeats(self) -> int:
        """Those of the calls that repeat another."""
        return sum(worker.repeats for worker in self._workers)

    @property
    def busy_seconds(self) -> float:
        """Seconds that workers measured themselves, summed over them."""
        return sum(worker.seconds for worker in self._workers)

    def report(self) -> StageReport:
        """The final numbers."""
        return StageReport(self.name, self.kind, self.calls, self.seconds)


class RunState:
    """One run in progress.

    Args:
        schedule: The program that runs, expanded for the input.
        engines: Open engines.
        crew: The workers.
        packing: The requests that share the run's blocks; ``None`` for one input.
        spilled: Names of the values that live in files.
        folder: Where these files are.
        job: Keeps all values in its folder.
        only: The blocks that are computed of a token-wise or attention stage; ``None`` for all.
        rows: The rows of the hidden states that are taken behind the run; ``None`` if all must be there.
    """

    def __init__(
        self,
        schedule: Schedule,
        engines: EnginePool,
        crew: Crew,
        packing: Packing | None = None,
        *,
        spilled: Iterable[str] = (),
        folder: Path | None = None,
        job: Job | None = None,
        only: Collection[int] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.program = program = schedule.program
        self.schedule = schedule
        self.engines = engines
        self.backend = engines.backend
        self.crew = crew
        self.packing = packing
        self.only = None if only is None else frozenset(only)
        few = rows is not None and job is None and schedule.drops_rows
        self._taken = np.unique(rows // program.block_size).tolist() if few and rows is not None else None
        self.known: Mapping[str, Callable[[ValueStore], None]] = {}
        """Of values whose other blocks are known already: puts these into a store that then holds all blocks."""
        self.stores = Stores(
            rows=schedule.value_rows,
            block_size=program.block_size,
            key_tile=program.key_tile,
            tiled=program.tiled,
            spilled=spilled,
            folder=folder if job is None else job.values,
            keep=job is not None,
            spare=engines.memory,
        )
        self.job = job
        self.checkpoints: Checkpointing | None = None
        """Set by :class:`~twoheads.runtime.execution.checkpoints.Checkpoints`, of a run in a job."""
        self.counters: dict[str, StageCounter] = {
            plan.name: StageCounter(plan.name, plan.kind) for plan in schedule.stages
        }
        self.restored_calls = 0
        self.lets_go = False
        """Whether the pages of weights are let go when they have been used."""
        self.routed: dict[str, int] = {}
        """Of every mixture of experts the calls that follow from what its tokens chose, by the stage's name."""
        self.expert_bytes = self.all_expert_bytes = 0
        """Of the weights of experts that were read, and of all that the stages have."""
        self.rounds = 0
        """Times that the run has waited for all calls of a stage before it began calls that need their results."""
        self.estimates: list[StageEstimate] = []
        self._rows: dict[str, list[Row]] = {}

    @property
    def coded(self) -> Packing | None:
        """The packing, where codes and not masks keep the requests apart."""
        return self.packing if self.packing is not None and self.packing.coded else None

    @property
    def calls(self) -> int:
        """Engine calls so far, counted where they are made."""
        return sum(counter.calls for counter in self.counters.values())

    @property
    def repeats(self) -> int:
        """Those of the calls that repeat another."""
        return sum(counter.repeats for counter in self.counters.values())

    def counted(self) -> Counted:
        """What the run has done."""
        return Counted(
            self.calls,
            self.rounds,
            tuple(counter.report() for counter in self.counters.values()),
            repeats=self.repeats,
            store_bytes=self.stores.peak_bytes,
            spilled_bytes=self.stores.spilled_bytes,
            estimates=tuple(self.estimates),
            fewer=sum(plan.formula.calls - self._routed(plan.name) for plan in self.schedule.stages if plan.routed),
            expert_bytes=self.expert_bytes,
            all_expert_bytes=self.all_expert_bytes,
        )

    def _routed(self, stage: str) -> int:
        """The calls that tokens' choices ask for; of a stage that an earlier process did, those that it made."""
        return self.routed.get(stage, self.counters[stage].calls)

    def compute_only(self, blocks: Collection[int]) -> None:
        """From now on these blocks alone are computed."""
        self.only = frozenset(blocks)
        self._rows.clear()

    def allocate(self, value: Value, *, reopen: bool) -> ValueStore:
        """A store for ``value``: for the blocks that are computed, and for all where the others are known."""
        fill = self.known.get(value.name)
        store = self.stores.allocate(value, reopen=reopen, blocks=self.held(value.name) if fill is None else None)
        if fill is not None:
            fill(store)
        return store

    def work(
        self,
        stage: Stage,
        items: Iterable[T],
        start: Callable[[], Callable[[T], None]],
        *,
        tokens: Tokens[T],
        companion: Companion | None = None,
        alone: bool = False,
    ) -> None:
        """Works off the items of ``stage``, with checkpoints where the run has such; independent ones, or ``alone``.

        See :meth:`~twoheads.runtime.execution.checkpoints.Checkpoints.work`.
        """
        if self.checkpoints is None:
            self.crew.run(items, start, alone=alone)
        else:
            self.checkpoints.work(stage, items, start, tokens=tokens, companion=companion, alone=alone)

    def block_tokens(self, block: int) -> tuple[int, int]:
        """The tokens ``(start, stop)`` of a block, those of padding among them."""
        size = self.program.block_size
        return block * size, (block + 1) * size

    def row_tokens(self, row: Row) -> tuple[int, int]:
        """The tokens ``(start, stop)`` of a query block with its tiles."""
        return self.block_tokens(row[0])

    def blocks(self, count: int) -> list[int]:
        """Those of a stage's ``count`` blocks that are computed."""
        return [block for block in range(count) if self.only is None or block in self.only]

    def held(self, name: str) -> Collection[int] | None:
        """The blocks of the value ``name`` that are kept; ``None`` for all."""
        return self._taken if name == self.program.hidden and self._taken is not None else self.only

    def query_rows(self, stage: AttentionStage) -> list[Row]:
        """The computed query blocks with their tiles, longest first: the last to finish is then a short one.

        Layers of equal mask and axes share the list.
        """
        axes = (stage.output.axis, self.program.value(stage.key).axis)
        key = f"{stage.mask} {stage.average} {axes}"
        if key not in self._rows:
            rows = [row for row in self.schedule.rows(stage) if self.only is None or row[0] in self.only]
            rows.sort(key=lambda row: -sum(segment.tiles for segment in row[1]))
            self._rows[key] = rows
        return self._rows[key]
