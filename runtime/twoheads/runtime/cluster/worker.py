"""A worker: it holds a bundle's open engines, and computes rows of stages from blocks by their references."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InternalError
from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.schedule import Schedule, make_schedule
from twoheads.runtime.backends.registry import open_backend
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.cluster.transport import (
    Blocks,
    Objects,
    Opening,
    PackTask,
    Piece,
    RowsTask,
    RunTask,
    StageResult,
    ValuesLostError,
)
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.weight_stream import WeightStream
from twoheads.runtime.memory.spare_memory import return_large_blocks
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.runs.host_executor import HostRun, run_stage

__all__ = ["Worker"]


class Worker:
    """Computes rows on this machine, with the code that a local run computes all rows with.

    Args:
        opening: The bundle.
        threads: Blocks computed at the same time.
        objects: The arrays of all workers.

    Raises:
        BundleError: There is no such bundle on this machine, or it is damaged, or another one.
        InputError: The backend is not installed.
    """

    def __init__(self, opening: Opening, threads: int, objects: Objects) -> None:
        bundle = read_bundle(opening.path, check=opening.check)
        if bundle.identity != opening.identity:
            raise BundleError(opening.path, "is another bundle than the one to run", "copy that one there")
        bundle = bundle.with_key_tile(opening.key_tile)
        self._program = bundle.program
        self._columns = bundle.columns
        weights = bundle.open_weights()
        backend = open_backend(opening.backend, precision=opening.precision, threads=threads)
        if opening.limited:
            return_large_blocks()
        self._engines = EnginePool(bundle, weights, backend, chain_threads=threads, share_packed=not opening.limited)
        self._stream: WeightStream | None = None
        self._threads = threads
        self._objects = objects
        self._keys = self._program.tiled
        self._stages: dict[str, Stage] = {stage.name: stage for stage in self._program.body}
        self._schedule = lru_cache(maxsize=2)(self._make_schedule)

    def open(self, run: RunTask) -> StageResult:
        """Opens the engines that ``run`` needs; where weights stream, each of these engines is opened for its stage."""
        if self._stream is not None:
            self._stream.end()
        self._stream = WeightStream(self._engines, ahead=run.ahead) if run.streamed else None
        with Crew(self._threads) as crew:
            self._run(run, crew).prepare()
        return StageResult({}, {}, peak_bytes=peak_memory())

    def compute(self, task: RowsTask) -> StageResult:
        """Computes rows of a stage and keeps their blocks."""
        stage = self._stages[task.stage]
        with Crew(self._threads) as crew:
            run = self._run(task.run, crew, task.rows)
            self._fill(run, task.reads)
            if self._stream is not None:
                self._stream.enter((stage,))
            run_stage(run, stage)
        arrays: dict[tuple[str, int], npt.NDArray[Any]] = {}
        for value in stage.outputs:
            if value.name in task.outputs:
                store = run.stores[value.name]
                held = task.rows if value.axis is not None else (0,)
                for number in range(-(-store.length // store.block_size)) if held is None else held:
                    arrays[value.name, number] = np.ascontiguousarray(store.block(number))
        blocks = self._keep(arrays, whole=task.rows is not None)
        return StageResult({stage.name: run.calls}, blocks, peak_bytes=peak_memory(), repeats=run.repeats)

    def copy(self, reads: Blocks) -> StageResult:
        """Keeps copies of blocks that another worker holds, for when it is lost."""
        arrays = {(name, block): array for name, block, array in self._fetch(reads)}
        return StageResult({}, self._keep(arrays, whole=True), peak_bytes=peak_memory())

    def give(self, reads: Blocks) -> StageResult:
        """The array of one block, for the result."""
        ((_, _, array),) = self._fetch(reads)
        return StageResult({}, {}, array, peak_memory())

    def pack(self, task: PackTask) -> StageResult:
        """Rows of logits or hidden states, or the embedding, float32."""
        with Crew(self._threads) as crew:
            run = self._run(task.run, crew)
            self._fill(run, task.reads)
            array = self._result(run, task.positions)
        calls = {name: counter.calls for name, counter in run.counters.items() if counter.calls}
        return StageResult(calls, {}, array, peak_memory())

    def _result(self, run: HostRun, positions: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        if positions is not None:
            return run.rows(positions, None)
        if self._program.pooling is None:
            raise InternalError(f"{self._program.name} has no pooling")
        return run.embedding(self._program.pooling)

    def _run(self, task: RunTask, crew: Crew, rows: tuple[int, ...] | None = None) -> HostRun:
        lengths = tuple(task.lengths.items())
        schedule = self._schedule(lengths, task.length, task.output, task.positions, columns=task.columns)
        run = HostRun(schedule, self._engines, crew, only=rows)
        run.stream = self._stream
        return run

    def _make_schedule(
        self, lengths: tuple[tuple[str, int], ...], length: int, output: str, positions: int | None, *, columns: bool
    ) -> Schedule:
        program = self._columns if columns else self._program
        if program is None:
            raise InternalError(f"{self._program.name} has no engine of some columns of its head")
        given = dict(lengths) or length
        return make_schedule(program, given, output=output, positions=positions, workers=self._threads)

    def _fill(self, run: HostRun, reads: Blocks) -> None:
        """Brings blocks into the run's stores."""
        for name, blocks in reads.items():
            run.stores.allocate(run.program.value(name), blocks=blocks)
        for name, block, array in self._fetch(reads):
            np.copyto(run.stores[name].block(block), array)
        for name in reads:
            run.stores[name].zero_padding()

    def _keep(self, arrays: Mapping[tuple[str, int], npt.NDArray[Any]], *, whole: bool) -> Blocks:
        """Puts blocks into as few objects as their readers allow.

        Keys and values of a tile are read together, and by any worker; other values, if they are not read as a
        ``whole`` by the worker that computes the same rows next, by whoever computes that row.
        """
        tile = self._program.key_tile // self._program.block_size
        objects: dict[Hashable, list[tuple[str, int]]] = {}
        for name, number in arrays:
            together: Hashable = number // tile if name in self._keys else name if whole else (name, number)
            objects.setdefault(together, []).append((name, number))
        blocks: dict[str, dict[int, Piece]] = {}
        for members in objects.values():
            reference = self._objects.put([arrays[member] for member in members])
            for index, (name, number) in enumerate(members):
                blocks.setdefault(name, {})[number] = Piece(reference, index)
        return blocks

    def _fetch(self, reads: Blocks) -> list[tuple[str, int, npt.NDArray[Any]]]:
        """The arrays of ``reads``, each with its value's name and its block's number."""
        places: dict[Any, list[tuple[str, int, int]]] = {}
        for name, blocks in reads.items():
            for block, piece in blocks.items():
                places.setdefault(piece.reference, []).append((name, block, piece.place))
        try:
            objects = self._objects.get(list(places))
        except ValuesLostError as error:
            lost = [members for at, members in enumerate(places.values()) if at in error.lost]
            raise ValuesLostError([(name, block) for members in lost for name, block, _ in members]) from None
        return [
            (name, block, arrays[index])
            for arrays, members in zip(objects, places.values(), strict=True)
            for name, block, index in members
        ]
