"""The open engines of one loaded bundle, each opened at its first use and kept for later runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar

import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import (
    Engine,
    Port,
    Program,
    ScanEngine,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.serialization.bundle_format import FULL_PRECISIONS
from twoheads.runtime.backends.protocol import ArtifactBackend, Backend, EngineFile, EngineHandle
from twoheads.runtime.bundle.artifacts import Artifacts
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.memory.spare_memory import SpareMemory

__all__ = ["EngineKey", "EnginePool"]

EngineKey: TypeAlias = tuple[str, str, tuple[str, ...]]
"""What an open engine is: its name, its variant (of attention), the names of its weights (of other engines)."""

PACKED_BYTES = 64 << 20
"""Of an engine's weights, from which on their pages are let go while they are packed."""

SHARED_ROWS = 128
"""From blocks of so many tokens runs read float32 weights where step engines do, if they can't share packed ones:
products are 2 to 5 % slower then, and opening is faster. In blocks of 64 they would be a tenth slower."""

T = TypeVar("T")
E = TypeVar("E", bound=Engine)


class _KeptByThread(threading.local):
    def __init__(self) -> None:
        self.entries: dict[Hashable, Any] = {}


class EnginePool:
    """Opens engines. Thread-safe.

    A token-wise engine is opened once for each set of weights: backends rearrange weights for their kernels when they
    open an engine, so an open engine belongs to its weights. Layers that share their weights share the open engine.

    Args:
        bundle: Where the files are.
        weights: What token-wise engines are bound to.
        backend: What runs them.
        program: Whose engines; if not given, the bundle's own and those of its windowed steps.
        kernel_threads: Threads of one call's kernels.
        chain_threads: The same of scans, whose calls are made one after the other.
        share_packed: Whether packed weights may be shared with other engines: they stay then when an engine is closed.

    Attributes:
        memory: For token values, from run to run.
        half: Whether values between and inside engines are rounded to float16.
        narrow: Whether values may have a smaller range than float32's.

    Raises:
        InputError: The backend runs what was built for a target, and nothing was, or in whole numbers.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Weights,
        backend: Backend,
        *,
        program: Program | None = None,
        kernel_threads: int = 1,
        chain_threads: int = 1,
        share_packed: bool = True,
    ) -> None:
        self.backend = backend
        self._kernel_threads = kernel_threads
        self._chain_threads = max(kernel_threads, chain_threads)
        self.weights = weights
        self.memory = SpareMemory()
        self.program = program or bundle.program
        self._bundle = bundle
        self._artifacts = _artifacts(bundle, backend) if isinstance(backend, ArtifactBackend) else None
        self.narrow = self._artifacts is not None
        self.half = self._artifacts is not None and self._artifacts.precision == "fp16"
        full, wide = bundle.manifest.precision in FULL_PRECISIONS, self.program.block_size >= SHARED_ROWS
        own = bundle.extends and full
        # Whether packed weights are shared or an engine's own, results have the bits of packed ones.
        packs = own and backend.shares_packed
        self._in_place = own and wide and not packs and backend.in_place
        once = share_packed and (packs or (bundle.extends and bool(bundle.manifest.quantised)))
        self._fetches = not share_packed
        self._shared = once or (bundle.extends and full and wide and not packs)
        self._heads = frozenset(stage.engine for stage in self.program.head if packs)
        self._open: dict[EngineKey, EngineHandle] = {}
        self._lock = threading.Lock()
        self._kept = _KeptByThread()
        steps = bundle.fused.steps
        others = [other for other in (steps, bundle.columns) if other is not None]
        programs = (program,) if program else (bundle.program, *others)
        self._single = _engines_of_single_weights(programs)
        self._declared = {engine.name: engine for one in programs for engine in one.engines}

    @property
    def shares(self) -> bool:
        """Whether other engines of the same weights read what these read, so that they take no memory for them."""
        return self._in_place or self._shared

    def declared(self, kind: type[E], name: str) -> E:
        """The declaration of the engine ``name``, of the kind ``kind``."""
        engine = self._declared[name]
        if not isinstance(engine, kind):
            raise InternalError(f"engine {name} is no {kind.__name__}")
        return engine

    def tokenwise(self, stage: TokenwiseStage) -> EngineHandle:
        """The engine of ``stage``, open, with the stage's weights.

        Raises:
            BundleError: The backend can't open it.
        """
        key = (stage.engine, "", stage.weights)
        with self._lock:
            handle = self._open.get(key)
        if handle is None:
            engine = self.declared(TokenwiseEngine, stage.engine)
            named = {port.name: name for port, name in zip(engine.weights, stage.weights, strict=True)}
            if self._artifacts is not None:  # which hold the others themselves
                named = {port: named[port] for port in self._artifacts.of_stage(stage).host_weights}
            tables = self.tables(stage)
            arrays = {
                port: self.weights.table(name).array if name in tables else self.weights.view(name)
                for port, name in named.items()
            }
            # What is packed is read once; without this all of it would be there beside what is made of it.
            in_place = self._reads_in_place(stage.engine)
            packed = sum(array.nbytes for array in arrays.values()) if not in_place else 0
            with self.weights.letting_go(tuple(named.values())) if packed >= PACKED_BYTES else nullcontext():
                handle = self._load(stage, engine.inputs, engine.outputs, arrays)
            if not in_place:
                self.weights.let_go(named.values())
            with self._lock:
                handle = self._open.setdefault(key, handle)
        return handle

    def columns(self, stage: ColumnsStage, start: int) -> EngineHandle:
        """The engine of the columns of the head that begin at ``start``, opened as that of all columns would be.

        Nobody keeps it: it is open as long as the caller has it.

        Raises:
            BundleError: As :meth:`tokenwise`.
        """
        engine, arrays = self.declared(TokenwiseEngine, stage.engine), dict[str, npt.NDArray[Any]]()
        for port, name in zip(engine.weights, stage.weights, strict=True):
            whole = self.weights.view(name)
            arrays[port.name] = whole[start : start + stage.columns] if name in stage.parted else whole
        path = self._bundle.file(self._bundle.engine_file(engine.name))
        file = EngineFile(
            path,
            engine.inputs,
            engine.outputs,
            arrays,
            threads=self._chain_threads,
            in_place=self._reads_in_place(stage.whole),
            frees=True,  # what calls of the body took is not needed any more, and the rows of all columns are large
        )
        return self.backend.load_engine(file)

    def tables(self, stage: TokenwiseStage) -> frozenset[str]:
        """The weights of ``stage`` whose rows are fetched before it reads them, as memory is limited."""
        if not self._fetches:
            return frozenset()
        return self.program.tables(stage, self.declared(TokenwiseEngine, stage.engine))

    def close_weighted(self, keep: Iterable[TokenwiseStage] = ()) -> None:
        """Closes engines that hold weights, but for those of the stages ``keep``; they open again when asked for."""
        kept = {(stage.engine, "", stage.weights) for stage in keep}
        with self._lock:
            self._open = {key: handle for key, handle in self._open.items() if not key[2] or key in kept}

    def attention(self, name: str, variant: str) -> EngineHandle:
        """Variant ``variant`` of the engine ``name`` of attention, of a scan or of experts, open.

        Raises:
            BundleError: There is no such variant, or the backend can't open it.
        """
        with self._lock:
            handle = self._open.get((name, variant, ()))
            if handle is None:
                inputs, outputs = self._declared[name].ports(variant)
                handle = self._load((name, variant), inputs, outputs, {})
                self._open[name, variant, ()] = handle
        return handle

    @property
    def opened(self) -> Mapping[EngineKey, EngineHandle]:
        """The engines that are open."""
        with self._lock:
            return dict(self._open)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What this thread made under ``key`` when it asked first: buffers that its later stages use again.

        Memory that is new may cost more than what a small stage computes. It is gone when the thread is, with its run.
        """
        entries = self._kept.entries
        if key not in entries:
            entries[key] = make()
        entry: T = entries[key]
        return entry

    def _load(
        self,
        what: TokenwiseStage | tuple[str, str],
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
    ) -> EngineHandle:
        """Opens the file of a stage's engine or of a variant, or what was built of it."""
        name, variant = (what.engine, "") if isinstance(what, TokenwiseStage) else what
        if self._artifacts is not None:
            assert isinstance(self.backend, ArtifactBackend)
            found = self._artifacts
            files = found.of_stage(what) if isinstance(what, TokenwiseStage) else found.of_attention(name, variant)
            return self.backend.load_artifact(files, inputs, outputs, weights)
        file = self._bundle.engine_file(name, variant)
        if not self._bundle.has(file):
            raise BundleError(
                str(self._bundle.path / file),
                "is needed for this length, and the bundle does not hold it",
                "compile the model again",
            )
        chained = isinstance(self._declared.get(name), ScanEngine)
        threads, own = self._chain_threads if chained else self._kernel_threads, name in self._single
        how = {"own_weights": own, "shared": self._shared, "in_place": self._reads_in_place(name)}
        return self.backend.load_engine(
            EngineFile(self._bundle.file(file), inputs, outputs, weights, threads=threads, **how)
        )

    def _reads_in_place(self, engine: str) -> bool:
        """Whether an engine reads float32 weights where they lie.

        So do heads where others share what they pack: before it finds the shared one an engine packs a copy of its
        own, and a head is a single weight, which may be a fifth of the model.
        """
        return self._in_place or engine in self._heads

    def holds(self, name: str, variant: str) -> bool:
        """Whether there is the variant ``variant`` of the attention engine ``name``, for this backend."""
        if self._artifacts is not None:
            return self._artifacts.holds(name, variant)
        return self._bundle.has(self._bundle.engine_file(name, variant))

    def prepare_attention(self, name: str) -> None:
        """Opens every variant of ``name`` that the bundle holds and an unpacked run calls."""
        for variant in self._declared[name].run_variants:
            if self.holds(name, variant):
                self.attention(name, variant)


def _artifacts(bundle: Bundle, backend: ArtifactBackend) -> Artifacts:
    """What was built for the backend's target; a simulator that builds anew knows no ranges of values for int8."""
    found = Artifacts(bundle, backend.target)
    if found.precision not in backend.precisions:
        raise InputError(
            str(bundle.path),
            f"was built for {backend.target} in {found.precision}, which {backend.name} does not run",
            f"twoheads build {bundle.path} --target {backend.target} --precision {backend.precisions[-1]}",
        )
    return found


def _engines_of_single_weights(programs: Sequence[Program]) -> frozenset[str]:
    """Token-wise engines that all programs bind to one set of weights only, which their files then refer to."""
    bound: dict[str, set[tuple[str, ...]]] = {}
    for program in programs:
        for stage, engine in program.bindings:
            bound.setdefault(engine.name, set()).add(stage.weights)
    return frozenset(name for name, weights in bound.items() if len(weights) == 1)
