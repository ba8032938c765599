"""A cluster without Ray: workers in one process, calls in a random order, and losses where a test wants them."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from twoheads.graphs.schedule.placement import DRIVER
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.cluster.transport import Opening, PackTask, StageResult, ValuesLostError, WorkerLostError
from twoheads.runtime.cluster.worker import Worker


@dataclass(eq=False)
class Reference:
    """Copies of arrays, kept as long as somebody knows this object."""

    owner: int
    number: int


@dataclass(eq=False)
class _Call:
    worker: int
    method: str
    arguments: tuple[Any, ...]
    outcome: Any = field(default=None)


class InProcess:
    """Workers of a bundle.

    Args:
        path: The bundle.
        workers: How many.
        losses: After how many calls which worker is lost; the result of that call is lost too, if it is that worker's.
        seed: Of the order in which calls end.
        limited: Whether memory is.
    """

    def __init__(
        self,
        path: Path,
        workers: int,
        losses: Mapping[int, int] | None = None,
        seed: int = 0,
        key_tile: int | None = None,
        *,
        limited: bool = False,
    ) -> None:
        self.count = workers
        self.alive = set(range(workers))
        self.most_arrays = 0
        self.ended: list[tuple[int, str]] = []
        self._losses = dict(losses or {})
        self._random = random.Random(seed)
        self._objects: dict[int, list[np.ndarray]] = {}
        self._numbers = count()
        identity = sha256((Path(path) / "manifest.json").read_bytes()).hexdigest()
        width = key_tile or read_bundle(path, check="size").program.key_tile
        opening = Opening(str(path), "size", "onnxruntime", "f32", identity, width, limited)
        self._workers = [Worker(opening, 2, _Objects(self, number)) for number in range(workers)]

    @property
    def arrays(self) -> list[np.ndarray]:
        """All that are kept."""
        return [array for arrays in self._objects.values() for array in arrays]

    def put(self, arrays: list[np.ndarray], owner: int = DRIVER) -> Reference:
        reference = Reference(owner, next(self._numbers))
        self._objects[reference.number] = copies = [array.copy() for array in arrays]
        for copy in copies:
            copy.flags.writeable = False
        weakref.finalize(reference, self._objects.pop, reference.number, None)
        self.most_arrays = max(self.most_arrays, len(self.arrays))
        return reference

    def get(self, references: Sequence[Reference]) -> list[list[np.ndarray]]:
        gone = [at for at, one in enumerate(references) if one.owner != DRIVER and one.owner not in self.alive]
        if gone:
            raise ValuesLostError(gone)
        return [self._objects[one.number] for one in references]

    def submit(self, worker: int, method: str, *arguments: Any) -> _Call:
        assert not [one for one in _leaves(arguments) if isinstance(one, np.ndarray)], "an array goes with a call"
        return _Call(worker, method, arguments)

    def wait(self, handles: Sequence[_Call]) -> _Call | None:
        call = self._random.choice(handles)
        if call.worker not in self.alive:
            return call
        try:
            call.outcome = getattr(self._workers[call.worker], call.method)(*call.arguments)
        except ValuesLostError as error:
            call.outcome = error
        self.ended.append((call.worker, call.method))
        self.alive.discard(self._losses.pop(len(self.ended), DRIVER))
        return call

    def result(self, handle: _Call) -> StageResult:
        if handle.worker not in self.alive:
            raise WorkerLostError
        if isinstance(handle.outcome, ValuesLostError):
            raise handle.outcome
        assert not [one for one in _leaves(handle.outcome.blocks) if isinstance(one, np.ndarray)]
        return handle.outcome


class _Objects:
    """The store as a worker sees it."""

    def __init__(self, store: InProcess, worker: int) -> None:
        self._store = store
        self._worker = worker

    def put(self, arrays: list[np.ndarray]) -> Reference:
        return self._store.put(arrays, self._worker)

    def get(self, references: Sequence[Reference]) -> list[list[np.ndarray]]:
        return self._store.get(references)


def _leaves(value: Any) -> Iterable[Any]:
    """What containers and tasks hold; which rows a task asks for is no value."""
    if isinstance(value, Mapping):
        yield from (leaf for item in value.values() for leaf in _leaves(item))
    elif isinstance(value, list | tuple):
        yield from (leaf for item in value for leaf in _leaves(item))
    elif hasattr(value, "reads"):
        assert not isinstance(value, PackTask) or value.positions is None or value.positions.ndim == 1
        yield from _leaves(value.reads)
    else:
        yield value
