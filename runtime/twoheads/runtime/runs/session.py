"""A loaded bundle: what a user holds and runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.protocol import ArtifactBackend, Backend, DeviceBackend
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.tokenizer import Tokenizer
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.executor import Executor
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.memory.spare_memory import return_large_blocks
from twoheads.runtime.reports.notices import give_notices
from twoheads.runtime.reports.peak_memory import process_memory
from twoheads.runtime.reports.report import Result
from twoheads.runtime.runs.execute import execute, run_inputs, shares
from twoheads.runtime.runs.groups import Group
from twoheads.runtime.runs.host_executor import HostExecutor
from twoheads.runtime.runs.run_context import Progress, RunContext

if TYPE_CHECKING:
    from twoheads.graphs.variants.steps import Steps
    from twoheads.runtime.generation.batch.batch import Batch
    from twoheads.runtime.generation.call_reader import Prompt
    from twoheads.runtime.generation.context import Context
    from twoheads.runtime.generation.generated import Generated
    from twoheads.runtime.generation.generator import Generator, Pieces
    from twoheads.runtime.generation.kept.prompt_blocks import RunsPrompts

__all__ = ["LoadedBundle"]


class LoadedBundle(RunContext):
    """A bundle that is ready to run inputs of any length. One run at a time.

    Attributes:
        program: The block program.
        manifest: The bundle's table of contents.
        backend, precision: What runs the engines; see :func:`twoheads.runtime.load`.
        threads: Workers of a run.
        memory_limit, spill, fused, device_memory_limit: See :func:`twoheads.runtime.load`.
        tokenizer: The bundle's tokenizer, or ``None`` if it has none.
        executor: Carries out its runs.
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
        weights = bundle.open_weights()
        self._weights = weights
        # Accelerators are built for the engines of blocks.
        self._fused = replace(bundle.fused, block=None) if isinstance(backend, ArtifactBackend) else bundle.fused
        self._columns = None if isinstance(backend, ArtifactBackend) else bundle.columns
        share = memory_limit is None
        if not share:
            return_large_blocks()
        self._engines = EnginePool(bundle, weights, backend, chain_threads=threads, share_packed=share)
        device: Executor | None = None
        if isinstance(backend, DeviceBackend) or device_memory_limit is not None:
            from twoheads.runtime.device.executor import open_device  # other runs need none of it

            device = open_device(self._engines, threads=threads, limit=device_memory_limit, host=(memory_limit, spill))
        whole = self._fused.whole
        block_engines = (
            None
            if whole is None
            else EnginePool(bundle, weights, backend, program=whole, kernel_threads=threads, share_packed=share)
        )
        self.executor: Executor = device or HostExecutor(self._engines, block_engines, threads=threads, folder=spill)
        self._backend = backend
        self.backend = backend.name
        self.precision = precision
        self.threads = threads
        self.memory_limit = memory_limit
        self.process_bytes = process_memory()
        self.spill = spill
        self.fused = fused and self.executor.variants
        self.tokenizer = Tokenizer(bundle.tokenizer_file) if bundle.tokenizer_file is not None else None

    @cached_property
    def generation(self) -> Generator:
        """What continues prompts; made at the first use, and kept with its open engines.

        Raises:
            InputError: The model generates nothing, or not with this backend; or its settings are not supported; or
                its weights are packed, and those of one stage do not fit into the memory limit.
        """
        from twoheads.graphs.schedule.step_memory import step_memory
        from twoheads.runtime.generation.generator import Generator
        from twoheads.runtime.generation.model import generation_model
        from twoheads.runtime.generation.steps.engines import StepEngines
        from twoheads.runtime.runs.source_run import EncoderRun

        bundle, weights, how = self._bundle, self._weights, self.precision
        share = self.memory_limit is None
        if not share and isinstance(self._backend, ArtifactBackend):
            problem = f"is not kept in generating by backend {self.backend}, whose artifacts hold the weights"
            raise InputError("memory_limit", problem, "leave it out")
        engines = StepEngines(bundle, weights, self._backend, threads=self.threads, precision=how, share_packed=share)
        if (limit := self.memory_limit) is not None:
            held = step_memory(self.program, packed=engines.packed, limit=limit, process=self.process_bytes)
            give_notices(() if held.note is None else (held.note,))
            engines.let_pass(held.passing)
        encoder, prompts = EncoderRun(self, self.executor), self._prompt_run(engines.steps)
        return Generator(generation_model(bundle, weights, engines, self.tokenizer, encoder, prompts))

    def _prompt_run(self, steps: Steps) -> RunsPrompts | None:
        """What computes whole blocks of prompts; ``None`` where steps do: they hold no more than a block's values."""
        from twoheads.runtime.runs.prompt_run import PromptRun

        if not steps.by_runs or not isinstance(self.executor, HostExecutor) or self.memory_limit is not None:
            return None
        single = several = HostExecutor(self._engines, None, threads=self.threads, folder=None)
        if self.threads > 1 and self._engines.shares:
            wide = EnginePool(self._bundle, self._weights, self._backend, kernel_threads=self.threads)
            single = HostExecutor(wide, None, threads=1, folder=None)
        return PromptRun(self, steps, several, single)

    def open_context(self, source: Any = None, pages: str | None = None) -> Context:
        """An empty sequence of tokens, to be continued, cut back and forked.

        Args:
            source: What the model's encoder reads, if it has one: a text, tokens ``[m]``, or arrays by name.
            pages: ``int8`` to keep whole blocks of keys and values rounded to 8 bits, which is an approximation.

        Raises:
            InputError: As :attr:`generation`; or the source is not what the model reads.
        """
        return self.generation.contexts.open(source=source, pages=pages)

    def generate(self, prompt: Prompt, **options: Any) -> Generated | list[Generated]:
        """Continues a text, tokens or a conversation; see :meth:`Generator.generate` for the options.

        ``speculate`` may be another loaded bundle, which drafts.

        Raises:
            InputError: As :attr:`generation`, and as there.
        """
        return self.generation.generate(prompt, **_with_draft(options))

    def stream(self, prompt: Prompt, **options: Any) -> Pieces:
        """The same, token by token; see :meth:`Generator.stream`.

        Raises:
            InputError: As :meth:`generate`.
        """
        return self.generation.stream(prompt, **_with_draft(options))

    def save_context(self, context: Context, path: str | os.PathLike[str]) -> None:
        """Writes a context to a file, which :meth:`load_context` reads.

        Raises:
            InputError: It is closed or another bundle's, or the file can't be written.
        """
        self.generation.contexts.save(context, path)

    def load_context(self, path: str | os.PathLike[str]) -> Context:
        """The context that was saved to ``path``, as if it had stayed open.

        Raises:
            InputError: The file is none, is damaged, or was saved with another bundle, backend or processor.
        """
        return self.generation.contexts.load(path)

    def open_batch(self, most: int = 32) -> Batch:
        """Continues many prompts at the same time; each gets the tokens that it would get alone.

        Args:
            most: Prompts that are computed at once; others wait for their turn.

        Raises:
            InputError: As :attr:`generation`; or ``most`` is not 1 or more.
            BundleError: The bundle was compiled without the engines for it.
        """
        from twoheads.runtime.generation.batch.batch import Batch  # most runs need none of it

        return Batch(self.generation, most=most)

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
        share = shares(pack)
        inputs = read_inputs(
            self.program,
            tokens,
            output=output,
            positions=positions,
            sink=sink is not None,
            attention_mask=attention_mask,
            documents=documents,
        )
        results = run_inputs(self, self.executor, inputs, share=share, sink=sink, progress=progress)
        give_notices(note for result in results for note in result.report.warnings)
        return inputs.assemble(results)

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
        if not self.executor.files:
            raise InputError("a job", "keeps its values in files, not on a device", "use a backend of the processor")
        inputs = read_inputs(self.program, tokens, output=output, positions=positions, sink=sink is not None)
        request = inputs.only
        if request is None:
            raise InputError("a job", "runs one input without padding", "run several one by one, in a folder each")
        job.identify(
            {
                "bundle": self.identity,
                "backend": f"{self.backend} {self.precision}",
                "key tile": self.program.key_tile,
                "output": inputs.output,
                "lengths": request.lengths,
                "input": request.digest(),
            }
        )
        group = Group((request,), inputs.output)
        (result,) = execute(self, self.executor, group, sink=sink, progress=progress, job=job)
        give_notices(result.report.warnings)
        return result


def _with_draft(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, a bundle that drafts among them as what generates with it."""
    draft = options.get("speculate")
    return {**options, "speculate": draft.generation.contexts} if isinstance(draft, LoadedBundle) else options
