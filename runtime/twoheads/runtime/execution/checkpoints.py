"""Checkpoints of a run in a job folder: after every stage, and every few minutes in a long one.

A stage's output is written once, by independent blocks, so a checkpoint is the list of finished stages, the files that
hold what later stages read, and, of a stage that is not finished, how many of its items are done in the order in which
they are taken. A run that goes on computes the same bits, because no block's result depends on another block's; of a
scan, whose blocks are a chain, the checkpoint holds the state between them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.graphs.serialization.json_codec import FormatError, to_json
from twoheads.runtime.execution.companion import Companion, Tokens
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.jobs.contents import FIX, RunJournal, StagePart, read_as
from twoheads.runtime.jobs.job import JOURNAL, Job
from twoheads.runtime.memory.disk_space import sync_folder
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["CHECKPOINT_SECONDS", "Checkpoints"]

T = TypeVar("T")

CHECKPOINT_SECONDS = 120.0
"""The longest that a stage computes between checkpoints: what a kill can cost."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        job: Where they are.
        run: Whose; its stores keep every value in the job's folder. It works through these checkpoints from now on.
    """

    def __init__(self, job: Job, run: RunState) -> None:
        self._job = job
        self._run = run
        run.checkpoints = self
        self._finished: list[str] = []
        self._sums: dict[str, str] = {}
        self._part: StagePart | None = None

    def restore(self) -> frozenset[str]:
        """Opens what the last checkpoint holds, and returns the stages that need not run again.

        Raises:
            TwoheadsError: A file is missing, damaged, or not one of this run.
        """
        content = self._job.journal()
        if content is None:
            return frozenset()
        journal = read_as(RunJournal, content, self._job.folder / JOURNAL)
        self._check(journal)
        run = self._run
        self._finished, self._part = list(journal.finished_stages), journal.part
        run.rounds = journal.rounds
        run.estimates.extend(journal.estimates)
        for name, (calls, repeats, seconds) in journal.counters.items():
            run.counters[name].restore(calls, repeats, seconds)
        run.restored_calls = run.calls
        for name, digest in journal.values.items():
            store = run.stores.allocate(run.program.value(name), reopen=True)
            if _digest(store) != digest:
                raise _damaged(store)
            self._sums[name] = digest
        return frozenset(self._finished)

    def _check(self, journal: RunJournal) -> None:
        """The journal is one that a run of this schedule writes: stages in order, and the values they leave."""
        schedule = self._run.schedule
        body, _ = needed_stages(schedule.program, schedule.output)
        finished = body[: len(journal.finished_stages)]
        left = {value.name for stage in finished for value in stage.outputs}
        left -= {name for stage in finished for name in schedule.release_after.get(stage.name, ())}
        if journal.finished_stages != tuple(stage.name for stage in finished):
            raise self._foreign(
                f"has finished the stages {list(journal.finished_stages)}, which is not how they follow"
            )
        if journal.values.keys() != left:
            raise self._foreign(f"holds the values {sorted(journal.values)}, those stages leave {sorted(left)}")
        if unknown := sorted(journal.counters.keys() - self._run.counters.keys()):
            raise self._foreign(f"counts calls of {unknown[0]!r}, which is no stage of it")
        if any(calls < 0 or repeats < 0 or not seconds >= 0 for calls, repeats, seconds in journal.counters.values()):
            raise self._foreign("counts less than no calls")

    def _foreign(self, problem: str) -> TwoheadsError:
        return TwoheadsError(str(self._job.folder / JOURNAL), problem, FIX)

    def is_partly_done(self, stage: Stage) -> bool:
        """Whether the stage's outputs hold items of an earlier process."""
        return self._part is not None and self._part.stage == stage.name

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
        """Works off the stage's items that are not done yet, with a checkpoint every few minutes.

        Args:
            stage: Whose.
            items: The same, in the same order, in every process.
            start: See :meth:`~twoheads.runtime.execution.crew.Crew.run`.
            tokens: Which tokens ``(start, stop)`` of the stage's outputs an item writes; the last may be padding.
            companion: What the stage gathers beside its outputs.
            alone: Whether one worker takes them all, in order.
        """
        queue = list(items)
        done = self._verified(stage, queue, tokens, companion)
        while done < len(queue):
            until = time.monotonic() + CHECKPOINT_SECONDS
            left = self._run.crew.run(queue[done:], start, pause=partial(_is_past, until), alone=alone)
            if left > 0 and len(queue) - left > done:
                self._save_part(stage, [tokens(item) for item in queue[done : len(queue) - left]], companion)
            done = len(queue) - left

    def _verified(self, stage: Stage, queue: Sequence[T], tokens: Tokens[T], companion: Companion | None) -> int:
        """Items that an earlier process did; their tokens must hold what it wrote."""
        part = self._part
        if part is None or part.stage != stage.name:
            self._part = None
            return 0
        stored = {value.name for value in stage.outputs if value.name in self._run.stores}
        whole = all(count > 0 and digests.keys() == stored for count, digests in part.pieces)
        if not whole or part.done > len(queue):
            raise self._foreign(f"holds a part of {stage.name} that is none")
        try:
            if companion is not None and not companion.restore(part.companion, part.done):
                self._part = None
                return 0
        except FormatError as error:
            raise self._foreign(f"is damaged: {error}") from None
        done = 0
        for count, digests in part.pieces:
            ranges = [tokens(item) for item in queue[done : done + count]]
            for name, digest in digests.items():
                if _digest_tokens(self._run.stores[name], ranges) != digest:
                    raise _damaged(self._run.stores[name])
            done += count
        return done

    def _save_part(self, stage: Stage, ranges: Sequence[tuple[int, int]], companion: Companion | None) -> None:
        stores = [self._run.stores[value.name] for value in stage.outputs if value.name in self._run.stores]
        digests = {store.value.name: _digest_tokens(store, ranges) for store in stores}
        before = () if self._part is None else self._part.pieces
        saved = None if companion is None else companion.save()
        self._part = StagePart(stage.name, (*before, (len(ranges), digests)), saved)
        self._flush(stores)
        self._write()

    def finish(self, stage: Stage, released: Iterable[str]) -> None:
        """Makes the end of ``stage`` a checkpoint; afterwards the values ``released`` may go."""
        ending = set(released)
        stores = [self._run.stores[value.name] for value in stage.outputs if value.name not in ending]
        self._sums |= {store.value.name: _digest(store) for store in stores}
        self._sums = {name: digest for name, digest in self._sums.items() if name not in ending}
        self._finished.append(stage.name)
        self._part = None
        self._flush(stores)
        self._write()

    def _flush(self, stores: Iterable[ValueStore]) -> None:
        for store in stores:
            store.flush()
        sync_folder(self._job.values)

    def _write(self) -> None:
        run = self._run
        journal = RunJournal(
            finished_stages=tuple(self._finished),
            part=self._part,
            values=self._sums,
            rounds=run.rounds,
            estimates=tuple(run.estimates),
            counters={name: (c.calls, c.repeats, c.seconds) for name, c in run.counters.items() if c.calls},
        )
        self._job.write_journal(to_json(journal))


def _is_past(moment: float) -> bool:
    return time.monotonic() >= moment


def _digest(store: ValueStore) -> str:
    digest = hashlib.sha256()
    for tile in range(len(store.array)):
        digest.update(store.tile(tile).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_tokens(store: ValueStore, ranges: Iterable[tuple[int, int]]) -> str:
    """Of the real tokens: padding is zeroed when the stage ends, and a kill may come before or after that."""
    digest = hashlib.sha256()
    for start, stop in ranges:
        for part, _ in store.parts(start, min(stop, store.length)):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _damaged(store: ValueStore) -> TwoheadsError:
    where = str(store.path or store.value.name)
    return TwoheadsError(where, "does not hold what the checkpoint says", "start the run again in another folder")
