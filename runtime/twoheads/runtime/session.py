"""A loaded bundle: what a user holds and runs."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt

from twoheads.graphs.bundle_format import Manifest
from twoheads.graphs.errors import InputError
from twoheads.graphs.packing import Packing, packed_schedule
from twoheads.graphs.program import Program
from twoheads.graphs.program_lengths import main_length, value_rows
from twoheads.graphs.schedule import Schedule, make_schedule
from twoheads.runtime.average_report import summarize
from twoheads.runtime.backend import open_backend
from twoheads.runtime.bundle_reader import Bundle, read_bundle
from twoheads.runtime.crew import Crew, available_threads
from twoheads.runtime.engine_pool import EnginePool
from twoheads.runtime.executor import compute, prepare
from twoheads.runtime.head import Sink
from twoheads.runtime.inputs import (
    approximation_warning,
    check_output,
    input_arrays,
    resolve_positions,
    samples_attention,
    split_inputs,
    trained_length_warning,
)
from twoheads.runtime.packed_run import Request, compute_packed, head_rows, packed_groups
from twoheads.runtime.packed_stage import ScoresBeyondCodesError
from twoheads.runtime.peak_memory import peak_memory
from twoheads.runtime.report import Report, Result
from twoheads.runtime.run_state import RunState
from twoheads.runtime.tokenizer import Tokenizer
from twoheads.runtime.weights import Weights

__all__ = ["LoadedBundle", "Progress", "load"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the engine calls done so far and all of them, in the thread that called ``run``."""


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "onnxruntime",
    threads: int | None = None,
    check: str = "full",
) -> LoadedBundle:
    """Opens the bundle in folder ``path``.

    Args:
        path: The folder that ``twoheads compile`` wrote.
        backend: What runs the engines; ``onnxruntime`` (CPU) is the default.
        threads: Blocks computed at the same time; ``None`` for every processor that the process may use.
        check: ``full`` (sizes and sha256 of all files) or ``size``.

    Raises:
        BundleError: It is not a bundle, damaged, or of another version.
        InputError: An argument is not one of the choices, or the backend is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError("threads", f"is {threads}", "give 1 or more")
    return LoadedBundle(read_bundle(path, check=check), backend=backend, threads=threads or available_threads())


class LoadedBundle:
    """A bundle that is ready to run inputs of any length. One run at a time.

    Attributes:
        program: The block program.
        manifest: The bundle's table of contents.
        threads: Workers of a run.
        tokenizer: The bundle's tokenizer, or ``None`` if it has none.
    """

    def __init__(self, bundle: Bundle, *, backend: str, threads: int) -> None:
        self._bundle = bundle
        self._engines = EnginePool(bundle, Weights(bundle.weights_file, bundle.manifest.weights), open_backend(backend))
        self.threads = threads
        self.tokenizer = Tokenizer(bundle.tokenizer_file) if bundle.tokenizer_file is not None else None

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def program(self) -> Program:
        """The block program."""
        return self._bundle.program

    @property
    def manifest(self) -> Manifest:
        """The bundle's table of contents."""
        return self._bundle.manifest

    def schedule(
        self, length: int | Mapping[str, int], output: str | None = None, positions: int | None = None
    ) -> Schedule:
        """What a run of ``length`` tokens will do: calls, operations, bytes, memory; nothing is run.

        Args:
            length: Tokens of the input; by axis where inputs have several lengths, ``{"n": 1000, "m": 300}``.
            output: ``hidden``, ``logits``, ``last`` or ``embedding``; ``None`` for the program's default.
            positions: Rows of logits; ``None`` for all.

        Raises:
            InputError: The model can't take that length or does not give that output.
        """
        return make_schedule(self.program, length, output=output, positions=positions, workers=self.threads)

    @overload
    def run(
        self,
        tokens: npt.NDArray[Any] | Sequence[int] | Mapping[str, Any],
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        pack: str = "auto",
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
    ) -> list[Result]: ...

    def run(
        self,
        tokens: Any,
        output: str | None = None,
        positions: Sequence[int] | npt.NDArray[Any] | None = None,
        sink: Sink | None = None,
        progress: Progress | None = None,
        pack: str = "auto",
    ) -> Result | list[Result]:
        """Runs one input, or each of a list of inputs of any lengths.

        Of a list, inputs of at most half a block are packed into the blocks of one run, where the bundle holds engines
        for it: in each attention one call a block, without a mask, serves all of them (Theorem 4.2).

        Args:
            tokens: Tokens ``[N]`` or ``[1, N]`` (features ``[N, width]`` or ``[1, N, width]`` where the model takes
                such, an image), a mapping from input names to arrays, which may have several lengths where the model
                has (encoder and decoder), or a list of these, which gives a list of results.
            output: ``logits`` (every position, or of the whole input where the model classifies it), ``last`` (the
                last one's logits), ``hidden`` or ``embedding``; ``None`` for the program's default.
            positions: Which rows of ``logits`` or ``hidden``, in this order; negative ones count from the end.
            sink: Takes the rows in order as they are computed, instead of an array in memory.
            progress: Called now and then with engine calls done and all engine calls.
            pack: ``auto``, or ``off`` to run the inputs of a list one after the other.

        Raises:
            InputError: The input, the output or a position is not one that the model has.
            BundleError: An engine can't be opened.
        """
        inputs, several = split_inputs(tokens)
        if several and sink is not None:
            raise InputError("sink", f"can't take {len(inputs)} inputs", "run them one by one")
        if pack not in ("auto", "off"):
            raise InputError("pack", f"is {pack!r}", "give 'auto' or 'off'")
        done: dict[int, Result] = {}
        if several and pack == "auto":
            done = self._run_packed(inputs, output, positions, progress)
        results = [
            done[at] if at in done else self._run_one(given, output, positions, sink, progress)
            for at, given in enumerate(inputs)
        ]
        return results if several else results[0]

    def _run_packed(
        self,
        inputs: list[Any],
        output: str | None,
        positions: Sequence[int] | npt.NDArray[Any] | None,
        progress: Progress | None,
    ) -> dict[int, Result]:
        """The results of those inputs that could be packed, by their place in the list."""
        output = check_output(self.program, output, positions=positions is not None, sink=False)
        requests: list[Request] = []
        for given in inputs:
            lengths, arrays = input_arrays(self.program, given)
            rows = None if positions is None else resolve_positions(positions, self._hidden_rows(lengths))
            requests.append(Request(main_length(self.program, lengths), arrays, rows))
        done: dict[int, Result] = {}
        for members, packing in packed_groups(self.program, self._engines, [request.length for request in requests]):
            try:
                results = self._run_group([requests[at] for at in members], packing, output, progress)
            except ScoresBeyondCodesError as error:
                logger.info("runs %d inputs one by one: %s", len(members), error)
            else:
                done.update(zip(members, results, strict=True))
        return done

    def _run_group(
        self, requests: list[Request], packing: Packing, output: str, progress: Progress | None
    ) -> list[Result]:
        computed = {"last": "logits", "embedding": "hidden"}.get(output, output)
        rows = head_rows(requests, output)
        schedule = packed_schedule(self.program, packing, output=computed, rows=rows, workers=self.threads)
        notes = self._warn(max(request.length for request in requests), depth=5)
        total = schedule.engine_calls
        with Crew(self.threads, None if progress is None else lambda: progress(run.calls, total)) as crew:
            run = RunState(self.program, schedule, self._engines, crew, packing)
            prepared = prepare(run)
            began = time.perf_counter()
            arrays = compute_packed(run, requests, output)
            seconds = time.perf_counter() - began
        report = replace(
            self._report(run, seconds, prepared, notes),
            requests=len(requests),
            length=packing.tokens,
            lengths={},
            output=output,
        )
        return [Result(array, output, report) for array in arrays]

    def _run_one(
        self,
        given: Any,
        output: str | None,
        positions: Sequence[int] | npt.NDArray[Any] | None,
        sink: Sink | None,
        progress: Progress | None,
    ) -> Result:
        output = check_output(self.program, output, positions=positions is not None, sink=sink is not None)
        lengths, arrays = input_arrays(self.program, given)
        rows = None if positions is None else resolve_positions(positions, self._hidden_rows(lengths))
        schedule = self.schedule(lengths, output, None if rows is None or output != "logits" else len(rows))
        notes = self._warn(schedule.length)

        total = schedule.engine_calls
        with Crew(self.threads, None if progress is None else lambda: progress(run.calls, total)) as crew:
            run = RunState(self.program, schedule, self._engines, crew)
            prepared = prepare(run)
            began = time.perf_counter()
            array = compute(run, arrays, rows, sink)
            seconds = time.perf_counter() - began
        return Result(array, output, self._report(run, seconds, prepared, notes))

    def _hidden_rows(self, lengths: Mapping[str, int]) -> int:
        return value_rows(self.program.value(self.program.hidden), lengths)

    def _warn(self, length: int, depth: int = 4) -> tuple[str, ...]:
        notes = (approximation_warning(self.manifest), trained_length_warning(self.program, length))
        told = tuple(note for note in notes if note is not None)
        for note in told:
            warnings.warn(note, stacklevel=depth)
        return told

    def _report(self, run: RunState, seconds: float, prepared: float, notes: tuple[str, ...]) -> Report:
        schedule = run.schedule
        return Report(
            requests=1,
            length=schedule.length,
            lengths=schedule.lengths,
            block_size=self.program.block_size,
            blocks=schedule.blocks,
            output=schedule.output,
            engine_calls=run.calls,
            formula_calls=schedule.formula_calls,
            rounds=run.rounds,
            seconds=seconds,
            prepare_seconds=prepared,
            peak_bytes=peak_memory(),
            store_bytes=run.stores.peak_bytes,
            threads=self.threads,
            stages=tuple(counter.report() for counter in run.counters.values()),
            approximations=self.manifest.approximations,
            warnings=notes,
            repeated_calls=run.repeats,
            average=summarize(run.estimates) if samples_attention(self.program) else None,
        )
