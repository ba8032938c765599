"""The open step engines of a bundle; see :mod:`twoheads.graphs.variants.steps`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import STEP as SCAN_STEP
from twoheads.graphs.program.program import (
    AttentionEngine,
    ExpertsEngine,
    ExpertsStage,
    ScanStage,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.serialization.bundle_format import ENGINES, FULL_PRECISIONS
from twoheads.graphs.variants.batch_steps import BATCH_ROWS, BatchAttention
from twoheads.graphs.variants.built.built_steps import BUILT_ROWS
from twoheads.graphs.variants.decoder import step_obstacle
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps, in_place_steps
from twoheads.graphs.variants.in_place.rounded_steps import rounded_steps
from twoheads.graphs.variants.steps import SMALL_ROWS, StepEngine, Steps, step_steps
from twoheads.runtime.backends.onnxruntime_shared import SharedEngine
from twoheads.runtime.backends.protocol import (
    ArtifactBackend,
    Backend,
    Call,
    DeviceBackend,
    EngineFile,
    EngineHandle,
)
from twoheads.runtime.backends.registry import DEVICES
from twoheads.runtime.bundle.engine_files.check_engine_file import engine_problem
from twoheads.runtime.bundle.engine_files.declared import declared_steps
from twoheads.runtime.bundle.inside import UNTRUSTED
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.execution.mixture import Mixture, StepMixture
from twoheads.runtime.execution.passing_engine import PassingEngine
from twoheads.runtime.generation.steps.built_engines import BuiltEngines

__all__ = ["StepEngines"]

Written = TypeVar("Written", bound=InPlaceSteps)


class StepEngines:
    """Opens step engines, each at its first use. One thread uses them at a time, and their kernels use several.

    :meth:`beside` has those of other threads.

    Kernels pack weights, and engines of all sizes share what is packed. Where they can't, and under a memory limit,
    float32 weights are read where the bundle's file is mapped; so are those of heads, as before an engine finds the
    shared weight it packs a copy. Quantised ones are always packed, as their kernels are slow otherwise: where these
    engines can't share, of those with equal rows one alone is open.

    On a backend that runs what was built for a target, steps go stage by stage, by engines of one number of rows.

    Args:
        bundle: Where the files are.
        weights: What the engines are bound to.
        backend: What runs them.
        threads: Of the kernels.
        precision: In what the backend multiplies.
        share_packed: Whether float32 weights may be packed: the system can't take their pages back then.

    Attributes:
        steps: What the engines compute.
        in_place: Steps that write keys in place, if the model and the bundle have them and they can run.
        rows_in_place: Likewise for several rows, unless steps compute whole blocks as well (:meth:`compute_blocks`).
        rounded: Likewise for one row, in 8 bits.
        backend: What runs them.
        threads: Of the kernels.
        packed: Whether kernels keep a copy of the weights, and do not read them where they are mapped.
        layered: Whether every step is computed stage by stage.
        calls: Engine calls so far, of all who use them.
        agreements: Whether both forms of a batch's attention give the same bits here, as far as that was tried.

    Raises:
        InputError: The model generates nothing, the bundle holds no such engines, or the backend can't run them.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Weights,
        backend: Backend,
        *,
        threads: int,
        precision: str = "f32",
        share_packed: bool = True,
    ) -> None:
        self.built = BuiltEngines(bundle, weights, backend) if isinstance(backend, ArtifactBackend) else None
        self.steps = _checked(bundle, backend) if self.built is None else self.built.steps
        self.least_rows = 1 if self.built is None else BUILT_ROWS
        self.in_place = self.rows_in_place = _held(bundle, backend, in_place_steps(bundle.program))
        self.rounded = _held(bundle, backend, rounded_steps(bundle.program))
        self.backend = backend
        self.calls = 0
        self.layered = self.steps.layered or self.built is not None
        self._passing = frozenset[str]()
        self._bundle = bundle
        self._weights = weights
        self.threads = threads
        self._precision = precision
        quantised, full = bool(bundle.manifest.quantised), bundle.manifest.precision in FULL_PRECISIONS
        self._heads_in_place = backend.in_place and (full or not quantised)
        self.packed = quantised or not backend.in_place or (full and share_packed and backend.shares_packed)
        self._declared = declared_steps(bundle.program, bundle.manifest, weights.view)
        self._open: dict[str, EngineHandle] = {}
        self._open_by_threads = {threads: self._open}
        self._opening = Lock()
        self.agreements: dict[AttentionEngine, bool] = {}
        self._capacity: dict[int, str] = {}

    def compute_blocks(self) -> None:
        """From now on steps compute whole blocks, and not runs: several rows are written in place no more.

        Steps of a block are not, and what an open block's rows get must have the bits of one form.
        """
        self.rows_in_place = None

    def beside(self, threads: int) -> StepEngines:
        """The same engines for another thread to use, with ``threads`` of their kernels; its calls count there.

        What one of them has open all have whose kernels have as many threads, and packed weights are the same ones.
        """
        other = copy(self)
        other.threads, other.calls, other._capacity = threads, 0, {}
        other._open = self._open_by_threads.setdefault(threads, {})
        return other

    def let_pass(self, stages: frozenset[str]) -> None:
        """From now on the engines of these token-wise stages are open while they are called, and no longer.

        Steps are computed stage by stage then, so that no engine holds all layers.
        """
        self._passing = stages
        if stages:
            self.layered = True
            self.in_place = self.rows_in_place = self.rounded = None

    def body(self, rows: int, blocks: int, source: int = 0) -> tuple[StepEngine, EngineHandle]:
        """The engine for a call of ``rows`` tokens behind ``blocks`` whole blocks, and ``source`` of an encoder.

        Raises:
            BundleError: The bundle does not hold it, or the backend can't open it.
        """
        capacity = self.steps.capacity(blocks) or 0
        engine = self.steps.engine(rows, capacity, source)
        if engine.name not in self._open and self.packed:
            other = self._capacity.get(rows, "")
            if other in self._open and not isinstance(self._open[other], SharedEngine):
                del self._open[other]
        self._capacity[rows] = engine.name
        return engine, self._whole(engine)

    def in_place_body(self, steps: InPlaceSteps, rows: int, capacity: int) -> tuple[StepEngine, EngineHandle]:
        """The engine for ``rows`` rows that are written in place, into arrays of ``capacity`` whole blocks.

        Raises:
            BundleError: As :meth:`body`.
        """
        engine = steps.engine(rows, capacity)
        return engine, self._whole(engine)

    def _whole(self, engine: StepEngine) -> EngineHandle:
        return self._opened(engine, dict(zip(self.steps.body.weights, engine.weights, strict=True)))

    def open_for(self, tokens: int, *, runs: bool = False, rounded: bool = False) -> None:
        """Opens what a sequence of ``tokens`` tokens needs, as far as one engine holds all layers.

        With ``runs``, other engines compute the whole blocks of a prompt; ``rounded``, steps read numbers of 8 bits.

        Raises:
            BundleError: As :meth:`body`.
        """
        steps = self.steps
        for rows in sorted(
            {max(rows, self.least_rows) for rows in SMALL_ROWS}
        ):  # first: packing so large a weight takes as much memory again for a moment
            self.heads(rows)
        blocks = tokens // steps.program.block_size
        one = self.rounded if rounded and blocks and self.rounded is not None else self.in_place
        for rows in () if self.layered or steps.source else steps.rows[:-1] if runs else steps.rows:
            in_place = one if rows == 1 else self.rows_in_place
            if in_place is not None and in_place.reach(rows, blocks):
                # Rows behind the last token may need a wider array than those at the open block's beginning.
                for first in (blocks * steps.program.block_size, tokens):
                    self.in_place_body(in_place, rows, steps.capacity(in_place.room(rows, first)) or 0)
                continue
            most = steps.capacity(blocks)
            reached = [one for one in steps.capacities if most is None or one <= most]
            for capacity in reached if rows == steps.rows[-1] else reached[-1:]:
                self.body(rows, capacity)

    @property
    def identity(self) -> tuple[str, ...]:
        """What the bits of a result depend on beside bundle and tokens: backend, its version, and the processor."""
        module = getattr(self.backend, "module", None)
        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
        flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))] or lines
        version = str(getattr(module, "__version__", ""))
        packed = ("packed float32 weights",) if self.packed and self._heads_in_place else ()
        return (self.backend.name, version, self._precision, platform.machine(), *packed, *sorted(set(flags)))

    def weight(self, name: str) -> npt.NDArray[Any]:
        """A weight of the bundle, read-only."""
        return self._weights.view(name)

    def region(self, stage: TokenwiseStage, rows: int) -> EngineHandle:
        """The engine of a token-wise stage for ``rows`` tokens, with the stage's weights."""
        engine = self.steps.region(stage, rows)
        key = f"{stage.name} {engine.name}"
        if key not in self._open:
            self._open[key] = self._of_stage(stage, engine, own=False)
        return self._open[key]

    def bound_region(self, stage: TokenwiseStage, rows: int, values: Mapping[str, npt.NDArray[Any]]) -> Call:
        """A call of :meth:`region` that reads and writes the arrays of ``values``, by name."""
        call, wrap = self.region(stage, rows).new_call(), self.backend.tensor
        for number, name in enumerate(stage.inputs):
            call.bind_input(number, wrap(values[name]))
        for number, value in enumerate(stage.outputs):
            call.bind_output(number, wrap(values[value.name]))
        return call

    def tile(self, engine: AttentionEngine, variant: str) -> EngineHandle:
        """A variant of an attention engine."""
        key = f"{engine.name}.{variant}"
        if key not in self._open:
            if self.built is not None:
                self._open[key] = self.built.tile(engine, variant)
            else:
                path = self._file(f"{ENGINES}/{engine.name}.{variant}.onnx")
                self._open[key] = self.backend.load_engine(EngineFile(path, *engine.ports(variant), {}, self.threads))
        return self._open[key]

    def batch_attention(self, engine: BatchAttention) -> EngineHandle:
        """The attention of a row of each of several sequences.

        Raises:
            BundleError: The bundle does not hold it, or the backend can't open it.
        """
        return self._attention(engine)

    def batch_in_place(self, engine: BatchInPlace) -> EngineHandle:
        """Likewise, where it writes keys and values in place.

        Raises:
            BundleError: As there.
        """
        return self._attention(engine)

    def batch_rows(self, least: int) -> int:
        """Rows of the smallest token-wise engines of a batch that have ``least`` rows; else those of the largest.

        A bundle that was compiled before there were all of them has others.
        """
        stage = self.steps.body.regions[0][0]
        files = ((rows, self._bundle.engine_file(self.steps.region(stage, rows).name)) for rows in BATCH_ROWS)
        return next((rows for rows, file in files if rows >= least and self._bundle.has(file)), BATCH_ROWS[-1])

    def holds(self, engine: BatchInPlace) -> bool:
        """Whether the bundle holds such an attention."""
        return self._bundle.has(f"{ENGINES}/{engine.name}.onnx")

    def _attention(self, engine: BatchAttention | BatchInPlace) -> EngineHandle:
        with self._opening:  # the one kind that several threads open, when sequences outgrow a capacity
            if engine.name not in self._open:
                path = self._file(f"{ENGINES}/{engine.name}.onnx")
                file = EngineFile(path, engine.inputs, engine.outputs, {}, self.threads)
                self._open[engine.name] = self.backend.load_engine(file)
            return self._open[engine.name]

    def mixture(self, stage: ExpertsStage, rows: int, values: Mapping[str, npt.NDArray[Any]]) -> StepMixture:
        """A mixture of experts in steps of ``rows`` tokens, on the step's ``values``."""
        engine = self.steps.program.engine_of(ExpertsEngine, stage.engine)
        calls = Mixture(engine, lambda variant: self._experts(engine, variant).new_call(), self.backend.tensor)
        return StepMixture(stage, calls, engine, rows, values, self._weights.part)

    def _experts(self, engine: ExpertsEngine, variant: str) -> EngineHandle:
        name = f"{engine.name}.{variant}"
        if name not in self._open:
            path = self._bundle.file(self._bundle.engine_file(engine.name, variant))
            self._open[name] = self.backend.load_engine(EngineFile(path, *engine.ports(variant), {}, self.threads))
        return self._open[name]

    def scan(self, stage: ScanStage, rows: int) -> EngineHandle:
        """The engine of a scan for ``rows`` tokens, or fewer."""
        engine = self.steps.scan(stage, rows)
        if engine.name not in self._open:
            path = self._file(f"{ENGINES}/{engine.name}.{SCAN_STEP}.onnx")
            file = EngineFile(path, *engine.ports(SCAN_STEP), {}, self.threads)
            self._open[engine.name] = self.backend.load_engine(file)
        return self._open[engine.name]

    def heads(self, rows: int) -> list[EngineHandle]:
        """The engines from hidden states to logits, of ``rows`` tokens, in order."""
        heads = self.steps.heads(rows)
        for stage, engine in heads:
            if engine.name not in self._open:
                self._open[engine.name] = self._of_stage(stage, engine, head=True)
        return [self._open[engine.name] for _, engine in heads]

    def _of_stage(
        self, stage: TokenwiseStage, engine: TokenwiseEngine, *, own: bool = True, head: bool = False
    ) -> EngineHandle:
        """The engine with the weights of ``stage``; of one that passes, what opens it for each call."""
        weights = dict(zip(stage.weights, engine.weights, strict=True))
        if self.built is not None:
            return self.built.stage(stage, engine, weights)
        if stage.name in self._passing:
            return PassingEngine(lambda: self._load(engine, weights, own=own, head=head, shared=False))
        return self._load(engine, weights, own=own, head=head)

    def _opened(self, engine: TokenwiseEngine, weights: Mapping[str, Port]) -> EngineHandle:
        if engine.name not in self._open:
            self._open[engine.name] = self._load(engine, weights)
        return self._open[engine.name]

    def _file(self, name: str) -> Path:
        """Where the bundle's engine file of that name lies.

        Raises:
            BundleError: It has none, or one that our emitters did not write or that differs from the program.
        """
        if not self._bundle.has(name):
            raise BundleError(str(self._bundle.path / name), "is missing from the bundle", "compile the model again")
        path = self._bundle.file(name)
        if problem := engine_problem(path.read_bytes(), self._declared.get(name)):
            raise BundleError(str(path), problem, UNTRUSTED)
        return path

    def _load(
        self,
        engine: TokenwiseEngine,
        weights: Mapping[str, Port],
        *,
        own: bool = True,
        head: bool = False,
        shared: bool = True,
    ) -> EngineHandle:
        in_place = not self.packed or (head and self._heads_in_place)
        named: dict[str, npt.NDArray[Any]] = {port.name: self._weights.view(name) for name, port in weights.items()}
        path = self._file(self._bundle.engine_file(engine.name))
        file = EngineFile(
            path, engine.inputs, engine.outputs, named, self.threads, own, shared=shared, in_place=in_place
        )
        if in_place:
            return self.backend.load_engine(file)
        with self._weights.letting_go(weights):
            return self.backend.load_engine(file)


def _held(bundle: Bundle, backend: Backend, steps: Written | None) -> Written | None:
    """``steps``, if the bundle holds their engines and the backend runs them."""
    if steps is None or not backend.in_place:
        return None
    held = all(bundle.has(bundle.engine_file(engine.name)) for engine in steps.engines)
    return steps if held else None


def _first_engine(steps: Steps) -> str:
    """The name of an engine that every bundle that generates holds."""
    if not steps.layered:
        return next(steps.engines).name
    return steps.region(steps.body.regions[0][0], steps.rows[0]).name


def _checked(bundle: Bundle, backend: Backend) -> Steps:
    if (obstacle := step_obstacle(bundle.program)) is not None:
        raise InputError(obstacle.where, obstacle.problem, obstacle.fix)
    steps = step_steps(bundle.program)
    if steps is None or not bundle.has(bundle.engine_file(_first_engine(steps))):
        raise InputError(str(bundle.path), "holds no engines that extend a sequence", "compile the model again")
    if isinstance(backend, DeviceBackend) or backend.name.partition(":")[0] not in DEVICES:
        raise InputError(f"backend {backend.name}", "does not generate yet", "use onnxruntime or openvino")
    return steps
