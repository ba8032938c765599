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
from typing import Any, TypeVar

import numpy as np

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.program import Stage
from twoheads.graphs.serialization.json_codec import from_json, to_json
from twoheads.runtime.execution.companion import Companion, Tokens
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.disk_space import sync_folder
from twoheads.runtime.memory.stores import ValueStore
from twoheads.runtime.reports.sampling import StageEstimate

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
        self._part: dict[str, Any] | None = None

    def restore(self) -> frozenset[str]:
        """Opens what the last checkpoint holds, and returns the stages that need not run again.

        Raises:
            TwoheadsError: A file is missing, damaged, or not one of this run.
        """
        journal = self._job.journal()
        if journal is None:
            return frozenset()
        run = self._run
        self._finished = list(journal["finished_stages"])
        self._part = journal["part"]
        run.rounds = journal["rounds"]
        run.estimates.extend(from_json(StageEstimate, data) for data in journal["estimates"])
        for name, (calls, repeats, seconds) in journal["counters"].items():
            run.counters[name].restore(calls, repeats, seconds)
        run.restored_calls = run.calls
        for name, digest in journal["values"].items():
            store = run.stores.allocate(run.program.value(name), reopen=True)
            if _digest(store) != digest:
                raise _damaged(store)
            self._sums[name] = digest
        return frozenset(self._finished)

    def is_partly_done(self, stage: Stage) -> bool:
        """Whether the stage's outputs hold items of an earlier process."""
        return self._part is not None and self._part["stage"] == stage.name

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
        if self._part is not None and self._part["stage"] != stage.name:
            self._part = None
        if self._part is not None and companion is not None and not companion.restore(self._part["companion"]):
            self._part = None
        if self._part is None:
            return 0
        done = 0
        for count, digests in self._part["pieces"]:
            ranges = [tokens(item) for item in queue[done : done + count]]
            for name, digest in digests.items():
                if _digest_tokens(self._run.stores[name], ranges) != digest:
                    raise _damaged(self._run.stores[name])
            done += count
        return done

    def _save_part(self, stage: Stage, ranges: Sequence[tuple[int, int]], companion: Companion | None) -> None:
        stores = [self._run.stores[value.name] for value in stage.outputs if value.name in self._run.stores]
        digests = {store.value.name: _digest_tokens(store, ranges) for store in stores}
        if self._part is None:
            self._part = {"stage": stage.name, "pieces": []}
        self._part["pieces"].append([len(ranges), digests])
        self._part["companion"] = None if companion is None else companion.save()
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
        self._job.write_journal(
            {
                "finished_stages": self._finished,
                "part": self._part,
                "values": self._sums,
                "rounds": run.rounds,
                "estimates": [to_json(estimate) for estimate in run.estimates],
                "counters": {name: (c.calls, c.repeats, c.seconds) for name, c in run.counters.items() if c.calls},
            }
        )


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
