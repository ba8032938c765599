"""A loaded bundle: what a user holds and runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import resolve_lengths
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule, make_schedule
from twoheads.graphs.schedule.spill import SpillPlan, plan_spill
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.runtime.backends.emulator import EmulatorBackend
from twoheads.runtime.backends.protocol import Backend
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.tokenizer import Tokenizer
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.device.executor import open_device
from twoheads.runtime.execution.checkpoints import Checkpoints
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.inputs.arrays import check_output, give_warnings
from twoheads.runtime.inputs.requests import Request, read_inputs
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.disk_space import check_room
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.report import Result
from twoheads.runtime.runs.context import Progress
from twoheads.runtime.runs.first_fault import fault_warning, warn_of_fault
from twoheads.runtime.runs.groups import run_groups
from twoheads.runtime.runs.host_executor import compute, prepare
from twoheads.runtime.runs.report import run_report

__all__ = ["LoadedBundle"]


class LoadedBundle:
    """A bundle that is ready to run inputs of any length. One run at a time.

    Attributes:
        program: The block program.
        manifest: The bundle's table of contents.
        backend, precision: What runs the engines; see :func:`twoheads.runtime.load`.
        threads: Workers of a run.
        memory_limit, spill, fused, device_memory_limit: See :func:`twoheads.runtime.load`.
        tokenizer: The bundle's tokenizer, or ``None`` if it has none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend,
        precision: str,
        threads: int,
        memory_limit: int | None = None,
        spill: Path | None = None,
        fused: bool = True,
        device_memory_limit: int | None = None,
    ) -> None:
        self._bundle = bundle
        weights = Weights(bundle.weights_file, bundle.manifest.weights)
        # Accelerators are built for the engines of blocks.
        self._fused = replace(bundle.fused, block=None) if isinstance(backend, EmulatorBackend) else bundle.fused
        self._engines = EnginePool(bundle, weights, backend)
        whole = self._fused.whole
        self._block_engines = (
            None if whole is None else EnginePool(bundle, weights, backend, program=whole, kernel_threads=threads)
        )
        self._device = open_device(self._engines, limit=device_memory_limit, host=(memory_limit, spill))
        self.backend = backend.name
        self.precision = precision
        self.threads = threads
        self.memory_limit = memory_limit
        self.spill = spill
        self.fused = fused and self._device is None
        self.tokenizer = Tokenizer(bundle.tokenizer_file) if bundle.tokenizer_file is not None else None

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def identity(self) -> str:
        """The hex sha256 of the bundle's manifest."""
        return self._bundle.identity

    @property
    def weights_file(self) -> Path:
        """The file that holds every weight."""
        return self._bundle.weights_file

    @property
    def program(self) -> Program:
        """The block program."""
        return self._bundle.program

    @property
    def manifest(self) -> Manifest:
        """The bundle's table of contents."""
        return self._bundle.manifest

    def schedule(
        self,
        length: int | Mapping[str, int],
        output: str | None = None,
        positions: int | None = None,
        *,
        by_blocks: bool = False,
    ) -> Schedule:
        """What a run of ``length`` tokens will do: calls, operations, bytes, memory; nothing is run.

        An input of at most one block is one call (and its head), and a windowed layer of a longer one is one call a
        block, or all layers together are, if the bundle has the engines. Under a memory limit, with values in files, in
        a job and on a cluster every stage is computed by itself.

        Args:
            length: Tokens of the input; by axis where inputs have several lengths, ``{"n": 1000, "m": 300}``.
            output: ``hidden``, ``logits``, ``last`` or ``embedding``; ``None`` for the program's default.
            positions: Rows of logits; ``None`` for all.
            by_blocks: Of a run in a job or on a cluster.

        Raises:
            InputError: The model can't take that length or does not give that output.
        """
        lengths = resolve_lengths(self.program, length)
        by_blocks |= not self.fused or self.memory_limit is not None or self.spill is not None
        program = self.program if by_blocks else self._fused.chosen(lengths)
        return make_schedule(program, lengths, output=output, positions=positions, workers=self.threads)

    def spill_plan(self, schedule: Schedule, job: Job | None = None) -> SpillPlan:
        """Which values a run of ``schedule`` keeps in files, and what it then takes of memory and disk.

        A ``job`` has files of all values; those that are not spilled count as memory as well.

        Raises:
            InputError: It does not fit into the memory limit.
            TwoheadsError: The spill folder's disk has too little room.
        """
        disk = self.spill is not None or job is not None
        plan = plan_spill(schedule, limit=self.memory_limit, disk=disk, workers=self.threads)
        if job is not None and not job.resumed:
            check_room(job.folder, schedule.memory.values, "the values of the run take up to")
        elif job is None and self.spill is not None:
            check_room(self.spill, plan.disk_bytes, "the run spills up to")
        return plan

    @overload
    def run(
        self,
        tokens: npt.NDArray[Any] | Sequence[int] | Mapping[str, Any],
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        pack: str = "auto",
        attention_mask: Any = None,
        documents: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> Result: ...

    @overload
    def run(
        self,
        tokens: Sequence[npt.NDArray[Any]] | Sequence[Sequence[int]] | Sequence[Mapping[str, Any]],
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        pack: str = "auto",
        attention_mask: Any = None,
        documents: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> list[Result]: ...

    def run(
        self,
        tokens: Any,
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        pack: str = "auto",
        attention_mask: Any = None,
        documents: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> Result | list[Result]:
        """Runs one input, or each of several inputs of any lengths.

        Several inputs share the blocks of common runs. Where all are at most half a block long, and the bundle holds
        engines for it, one call a block without a mask serves them in each attention (Theorem 4.2); otherwise the masks
        of the run keep them apart. Models that move rows, or read what is not one row a token, run them one by one.

        Padding is not computed: only the tokens that ``attention_mask`` keeps are run, and their rows stand in the
        result where the tokens stood; rows of padding are 0, and an embedding, the last logits or those of the whole
        input are those of the real tokens. A token's position is its place in what was given, padding counted, unless
        the mapping gives positions: so the models compute it that number the padded row. Models that add up the mask
        (OPT) number real tokens. (What depends on the number of tokens depends on that of the real ones.) Tokens may be
        hidden between others only where no layer counts distances.

        Args:
            tokens: Tokens ``[N]`` or ``[1, N]`` (features ``[N, width]`` or ``[1, N, width]`` where the model takes
                such, an image), or a mapping from input names to arrays, which may have several lengths where the model
                has (encoder and decoder), and may hold the ``attention_mask``. A batch ``[B, N]``, or a list of these
                of any lengths, gives a list of results.
            output: ``logits`` (every position, or of the whole input where the model classifies it), ``last`` (the
                last one's logits), ``hidden`` or ``embedding``; ``None`` for the program's default.
            positions: Which rows of ``logits`` or ``hidden``, in this order; negative ones count from the end.
            sink: Takes the rows in order as they are computed, instead of an array in memory.
            progress: Called now and then with engine calls done and all engine calls.
            pack: ``auto``, or ``off`` to run several inputs one after the other.
            attention_mask: 1 for real tokens and 0 for padding, on either side, shaped as the tokens: ``[N]``,
                ``[1, N]`` or ``[B, N]``, or a list. Of several arguments it speaks of ``input_ids``.
            documents: The lengths of documents that lie one after the other in ``tokens``, or for every token the
                number of its document. Each sees itself only, and its positions begin at 0. The result has their rows
                in place; one row a document where the output is one of the whole input.

        Raises:
            InputError: The input, the output or a position is not one that the model has.
            BundleError: An engine can't be opened.
        """
        if pack not in ("auto", "off"):
            raise InputError("pack", f"is {pack!r}", "give 'auto' or 'off'")
        output = check_output(self.program, output, positions=positions is not None, sink=sink is not None)
        inputs, several = read_inputs(
            self.program,
            tokens,
            output=output,
            positions=positions,
            attention_mask=attention_mask,
            documents=documents,
        )
        if sink is not None and (several or inputs[0].places):
            what = f"{len(inputs)} inputs" if several else "rows that are not computed, or several documents"
            raise InputError("sink", f"can't take {what}", "run them one by one")
        requests = [request for given in inputs for request in given.requests]
        done = run_groups(self, self._engines, requests, output, progress) if self._packs(pack, requests) else {}
        for at, request in enumerate(requests):
            if at not in done:
                done[at] = self._run_one(request, output, sink, progress)
        computed = iter([done[at] for at in range(len(requests))])
        results = [given.assemble([next(computed) for _ in given.requests]) for given in inputs]
        return results if several else results[0]

    def _packs(self, pack: str, requests: list[Request]) -> bool:
        """Whether runs may share their blocks; on a device each has the graph of its own number of blocks."""
        return pack == "auto" and len(requests) > 1 and self._device is None

    def run_job(
        self,
        job: Job,
        tokens: npt.NDArray[Any] | Sequence[int] | Mapping[str, Any],
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Runs one input with checkpoints in the folder of ``job``, or goes on from the last one.

        The arguments and the result are those of :meth:`run`; the rows of a sink are all written again.

        Raises:
            InputError: The job is of another bundle, backend, input or output; or as :meth:`run`.
            TwoheadsError: A file of the job is damaged, or the disk is full: the last checkpoint then stays good.
        """
        if self._device is not None:
            raise InputError("a job", "keeps its values in files, not on a device", "use a backend of the processor")
        output = check_output(self.program, output, positions=positions is not None, sink=sink is not None)
        inputs, several = read_inputs(
            self.program, tokens, output=output, positions=positions, attention_mask=None, documents=None
        )
        if several or inputs[0].places or len(inputs[0].requests) != 1:
            raise InputError("a job", "runs one input without padding", "run several one by one, in a folder each")
        request = inputs[0].requests[0]
        job.identify(
            {
                "bundle": self.identity,
                "backend": f"{self.backend} {self.precision}",
                "key tile": self.program.key_tile,
                "output": output,
                "lengths": request.lengths,
                "input": request.digest(),
            }
        )
        return self._run_one(request, output, sink, progress, job)

    def _run_one(
        self, request: Request, output: str, sink: Sink | None, progress: Progress | None, job: Job | None = None
    ) -> Result:
        rows = request.rows
        count = None if rows is None or output != "logits" else len(rows)
        schedule = self.schedule(request.lengths, output, count, by_blocks=job is not None)
        block = self._fused.block
        at_once = schedule.program is self._fused.whole
        engines = self._block_engines if at_once and self._block_engines is not None else self._engines
        arrays = block.arrays(request.arrays, request.lengths) if at_once and block is not None else request.arrays
        spilled = self.spill_plan(schedule, job).values
        notes = give_warnings(self.manifest, self.program, schedule.length, depth=4)
        total = schedule.engine_calls
        began = time.perf_counter()

        def tell(*, now: bool) -> None:
            if job is not None:
                job.tell(run.calls, total, began=run.restored_calls, seconds=time.perf_counter() - began, now=now)

        def tick() -> None:
            if progress is not None:
                progress(run.calls, total)
            tell(now=False)

        # The kernels of a whole block use the threads themselves.
        workers = 1 if at_once else self.threads
        with Crew(workers, None if progress is None and job is None else tick) as crew:
            run = RunState(schedule.program, schedule, engines, crew, spilled=spilled, folder=self.spill, job=job)
            if job is not None:
                Checkpoints(job, run)
            device = self._device
            prepared = prepare(run) if device is None else device.prepare(run)
            began = time.perf_counter()
            try:
                array = (compute if device is None else device.compute)(run, arrays, rows, sink)
            finally:
                tell(now=True)
            seconds = time.perf_counter() - began
            tick()
        run.stores.close()
        if (odd := run.finite.first) is not None:
            again = self._engines if job is None and device is None else None
            notes += warn_of_fault(fault_warning(odd, self, again, request, output), depth=4)
        return Result(array, output, run_report(self, run, seconds, prepared, notes))
