"""What a cluster must be able to do, as protocols: :mod:`ray_workers` does it with Ray, tests do it in one process.

Arrays are known by references. Whoever runs a cluster's stages passes references around and never sees an array, but
for the rows of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

__all__ = [
    "Blocks",
    "Objects",
    "Opening",
    "PackTask",
    "Piece",
    "RowsTask",
    "RunTask",
    "StageResult",
    "ValuesLostError",
    "WorkerLostError",
    "Workers",
]


class Piece(NamedTuple):
    """Where a block lies: arrays that are made and read together share an object."""

    reference: Any
    place: int


Blocks: TypeAlias = Mapping[str, Mapping[int, Piece]]
"""Where blocks lie: by the value's name, then by the block's number; a row value is block 0."""


class WorkerLostError(Exception):
    """A worker is gone, and all that it held."""


class ValuesLostError(Exception):
    """Arrays could not be read, because whoever held them is gone.

    Args:
        lost: Which: indices into what was asked for, or (from a worker) names of values with numbers of blocks.
    """

    def __init__(self, lost: Sequence[Any]) -> None:
        super().__init__(lost)
        self.lost = lost


class Objects(Protocol):
    """A worker's access to the arrays of all workers."""

    def put(self, arrays: list[npt.NDArray[Any]]) -> Any:
        """Keeps copies of ``arrays`` in one object, as long as its reference is known and this worker lives."""
        ...

    def get(self, references: Sequence[Any]) -> list[list[npt.NDArray[Any]]]:
        """The arrays of each of the objects, not to be written to.

        Raises:
            ValuesLostError: One of them is gone.
        """
        ...


class Workers(Protocol):
    """The driver's access to the workers, which are numbered from 0; calls of one worker run one after the other."""

    @property
    def count(self) -> int:
        """How many there are, lost ones included."""
        ...

    def submit(self, worker: int, method: str, *arguments: Any) -> Any:
        """Has ``worker`` call the method of its :class:`~twoheads.runtime.cluster.worker.Worker`; returns a handle."""
        ...

    def wait(self, handles: Sequence[Any]) -> Any:
        """One of ``handles`` whose call has ended; ``None`` if some time has passed without."""
        ...

    def result(self, handle: Any) -> Any:
        """What the ended call returned.

        Raises:
            WorkerLostError: The worker is gone.
            ValuesLostError: It could not read a block.
            TwoheadsError: What the call raised.
        """
        ...

    def put(self, arrays: list[npt.NDArray[Any]]) -> Any:
        """Keeps copies of ``arrays``, which no loss of a worker takes away, as long as their reference is known."""
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """How workers open a bundle.

    Attributes:
        path: Its folder, on every machine.
        check: How thoroughly its files are checked, as in :func:`twoheads.runtime.load`.
        backend, precision: What runs the engines, likewise.
        identity: The sha256 of its manifest.
        key_tile: The width of key tiles, one that the bundle offers.
        limited: Whether runs have a memory limit: packed weights are not kept for others then.
    """

    path: str
    check: str
    backend: str
    precision: str
    identity: str
    key_tile: int
    limited: bool = False


@dataclass(frozen=True, slots=True)
class RunTask:
    """Which run a task belongs to: what the schedule is made of.

    Attributes:
        lengths: Tokens by input axis; the length of a program without such is fixed.
        length: The one that reports tell.
        output, positions: As :func:`~twoheads.graphs.schedule.schedule.make_schedule` takes them.
        streamed, ahead: Of engines with weights, as in :class:`~twoheads.runtime.execution.executor.RunPlan`.
        columns: Whether the head is in pieces of columns.
    """

    lengths: Mapping[str, int]
    length: int
    output: str
    positions: int | None
    streamed: bool = False
    ahead: bool = False
    columns: bool = False


@dataclass(frozen=True, slots=True)
class RowsTask:
    """Some rows of one body stage.

    Attributes:
        run: Of which run.
        stage: The stage's name.
        rows: The blocks to compute; ``None`` for a stage that is computed at once.
        outputs: Which of the stage's values are wanted.
        reads: The blocks that these rows read.
    """

    run: RunTask
    stage: str
    rows: tuple[int, ...] | None
    outputs: tuple[str, ...]
    reads: Blocks


@dataclass(frozen=True, slots=True)
class PackTask:
    """Rows of the result, in order.

    Attributes:
        run: Of which run.
        positions: The rows of the hidden states that are wanted; ``None`` for their pooled embedding.
        reads: The blocks of hidden states that hold them.
    """

    run: RunTask
    positions: npt.NDArray[Any] | None
    reads: Blocks


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a worker did.

    Attributes:
        calls: Engine calls, by stage.
        blocks: Where the blocks lie that it computed or copied.
        array: Rows of the result, where those were asked for.
        peak_bytes: The memory high-water mark of the worker's process.
        repeats: Those of the calls that repeat another, as its scores were too far from their anchor.
    """

    calls: Mapping[str, int]
    blocks: Blocks
    array: npt.NDArray[Any] | None = None
    peak_bytes: int = 0
    repeats: int = 0
