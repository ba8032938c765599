"""Sends tasks to workers, takes their results, and knows who is lost and who holds what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.program.program import Value
from twoheads.graphs.schedule.placement import Placement, deal_rows
from twoheads.runtime.cluster.ledger import Ledger
from twoheads.runtime.cluster.transport import Piece, StageResult, ValuesLostError, WorkerLostError, Workers

__all__ = ["Dispatch", "Sent"]

MOST_LOSSES = 100
"""How often blocks may be lost while their holders live, until the run gives up."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call on its way: its worker, and the blocks that it reads by name and number, with whose copies it reads."""

    worker: int
    reads: Mapping[tuple[str, int], int]


class Dispatch:
    """Calls of one run.

    ``calls`` are engine calls by stage, ``repeats`` how many of them repeat another, ``read_bytes`` what workers read
    that others hold, by method.

    Args:
        workers: The cluster.
        alive: Numbers of the workers that live; lost ones are removed from it.
        placement: Who computes which rows, its workers being those alive in ascending order.
        values: The program's values by name.
        tell: Called now and then, and after each call.
    """

    def __init__(
        self,
        workers: Workers,
        alive: set[int],
        placement: Placement,
        values: Mapping[str, Value],
        tell: Callable[[], None],
    ) -> None:
        self.alive = alive
        self.ledger = Ledger()
        self.calls: Counter[str] = Counter()
        self.repeats = 0
        self.read_bytes: Counter[str] = Counter()
        self.lost_workers = 0
        self.peak_bytes = 0
        self._workers = workers
        self._values = values
        self._block_size = placement.schedule.program.block_size
        self._costs = placement.costs
        living = self._living()
        self._owners = {axis: living[owner] for axis, owner in placement.owners.items()}
        self._losses = 0
        self._tell = tell

    def owner(self, axis: str | None, row: int) -> int:
        """The worker that computes block ``row`` of an axis, or (``None``) what is computed once."""
        return min(self.alive) if axis is None else int(self._owners[axis][row])

    def put(self, array: npt.NDArray[Any]) -> Piece:
        """Where a copy of ``array`` lies that no worker's loss takes away."""
        return Piece(self._workers.put([array]), 0)

    def references(
        self, worker: int, reads: Mapping[str, Iterable[int]]
    ) -> tuple[dict[str, dict[int, Piece]], dict[tuple[str, int], int]]:
        """Where the blocks ``reads`` lie for ``worker``, in its own copies where it has some, and whose they are."""
        blocks: dict[str, dict[int, Piece]] = {}
        holders: dict[tuple[str, int], int] = {}
        for name, numbers in reads.items():
            blocks[name] = {}
            for number in map(int, numbers):
                holders[name, number], blocks[name][number] = self.ledger.nearest(name, number, worker)
        return blocks, holders

    def send(self, worker: int, reads: Mapping[tuple[str, int], int], method: str, *arguments: Any) -> tuple[Any, Sent]:
        """Starts a call; returns its handle and what was sent."""
        foreign = (name for (name, _), holder in reads.items() if holder != worker)
        self.read_bytes[method] += sum(self._values[name].nbytes(self._block_size) for name in foreign)
        return self._workers.submit(worker, method, *arguments), Sent(worker, reads)

    def collect(self, flying: dict[Any, Sent]) -> tuple[Sent, StageResult | None]:
        """Waits for one of the calls ``flying`` and takes it out; ``None`` if it, or what it reads, was lost.

        Raises:
            TwoheadsError: What the call raised; or all workers are lost.
        """
        while (handle := self._workers.wait(list(flying))) is None:
            self._tell()
        sent = flying.pop(handle)
        try:
            result: StageResult = self._workers.result(handle)
        except WorkerLostError:
            self._lose(sent.worker)
            return sent, None
        except ValuesLostError as error:
            self._forget(sent, error)
            return sent, None
        self.calls.update(result.calls)
        self.repeats += result.repeats
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)
        self._tell()
        return sent, result

    def _living(self) -> npt.NDArray[np.int64]:
        return np.array(sorted(self.alive), np.int64)

    def _lose(self, worker: int) -> None:
        """Strikes a worker out, and deals what it would have computed to the others."""
        self.ledger.forget_worker(worker)
        if worker not in self.alive:
            return
        self.alive.discard(worker)
        self.lost_workers += 1
        if not self.alive:
            raise TwoheadsError("cluster", "all workers are lost", "see why in Ray's logs, and run again")
        living = self._living()
        for axis, owner in self._owners.items():
            rows = np.flatnonzero(owner == worker)
            owner[rows] = living[deal_rows(self._costs[axis][rows], len(living))]

    def _forget(self, sent: Sent, error: ValuesLostError) -> None:
        self._losses += 1
        if self._losses > MOST_LOSSES:
            raise TwoheadsError("cluster", "values are lost again and again", "see why in Ray's logs, and run again")
        for name, block in error.lost:
            self.ledger.forget_copy(name, block, sent.reads[name, block])
