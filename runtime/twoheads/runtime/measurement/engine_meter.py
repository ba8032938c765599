"""Measures the engine files of a bundle: warm calls on random values, alone and side by side."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.prediction.device_profile import ALONE, EngineTimes, Sampling
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan_operators import SIGNS
from twoheads.graphs.program.program import (
    AttentionEngine,
    ExpertsEngine,
    Program,
    ScanEngine,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.variants.choose import fused_steps
from twoheads.runtime.backends.protocol import Backend, Call, EngineHandle
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.measurement.sampling_profiler import measure_sampling

__all__ = ["EngineMeter"]

MEASURE_SECONDS = 0.4
"""Of one engine with one number of callers; longer where a call is, as each caller makes several."""

LEAST_CALLS = 3
MOST_WEIGHTS = 3
"""Sets of weights between which a token-wise engine's calls alternate: one set alone might stay in the caches."""

CALLS_PER_WEIGHTS = 2
TILES = 8
"""Different key tiles that calls of attention read in turn."""

Array = npt.NDArray[Any]
Ring = Sequence[Callable[[], None]]
"""Ready calls, made one after the other."""


class EngineMeter:
    """Measures the engine files of one bundle, one after the other.

    Args:
        bundle: The bundle.
        backend: What runs them.
        callers: Numbers of threads that call at the same time.
        progress: Told of every file before it is measured.
        seconds: Of one engine with one number of callers; :data:`MEASURE_SECONDS` if not given.
        tiles: Different key tiles that calls of attention read in turn, each at least once.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        callers: tuple[int, ...],
        progress: Callable[[str], None],
        *,
        seconds: float | None = None,
        tiles: int = TILES,
    ) -> None:
        self._bundle = bundle
        self._pool = EnginePool(bundle, bundle.open_weights(), backend)
        self._backend = backend
        self._callers = callers
        self._progress = progress
        self._seconds = MEASURE_SECONDS if seconds is None else seconds
        self._tiles = tiles
        self._random = np.random.default_rng(0)

    def engines(self) -> Iterator[EngineTimes]:
        """Times of all files that a run of one input can call."""
        program = self._bundle.program
        for engine in program.engines:
            if isinstance(engine, TokenwiseEngine):
                self._progress(engine.name)
                stages = _stages_of(program, engine.name)
                yield self._tokenwise(engine, stages, self._pool, self._callers, program)
            elif isinstance(engine, AttentionEngine):
                yield from self.attention(engine)
            elif isinstance(engine, ScanEngine):
                yield self._alone(engine, "block")
            elif isinstance(engine, ExpertsEngine):
                yield from (self._alone(engine, variant) for variant in engine.variants)
        for steps, fused in fused_steps(program, self._bundle.manifest.lowering):
            if not fused.whole:  # whose kernels use all threads: see alone()
                self._progress(fused.name)
                yield self._tokenwise(fused, _stages_of(steps, fused.name), self._pool, self._callers, steps)

    def attention(self, engine: AttentionEngine) -> Iterator[EngineTimes]:
        """Times of an attention engine's variants."""
        return (self._attention(engine, variant) for variant in _held_variants(self._bundle, engine))

    def alone(self) -> Iterator[EngineTimes]:
        """Times of the engines of runs whose calls compute whole blocks, by the threads that share the kernels."""
        program = self._bundle.fused.whole
        if program is None:
            return
        pools = [
            EnginePool(self._bundle, self._pool.weights, self._backend, program=program, kernel_threads=threads)
            for threads in self._callers
        ]
        for engine in program.tokenwise_engines:
            self._progress(f"{engine.name}.{ALONE}")
            stages = _stages_of(program, engine.name)[:1]
            times = [self._tokenwise(engine, stages, pool, (1,), program) for pool in pools]
            calls = (entry.call_seconds["1"] for entry in times)
            seconds = dict(zip(map(str, self._callers), calls, strict=True))
            yield EngineTimes(engine.name, ALONE, times[-1].open_seconds, seconds)

    def sampling(self, engines: Sequence[EngineTimes]) -> Sampling | None:
        """What the host takes where attention is sampled."""
        self._progress("sampled attention")
        full = {times.engine: times.call_seconds["1"] for times in engines if times.variant == "full"}
        return measure_sampling(self._bundle.program, self._pool, full)

    def _tokenwise(
        self,
        engine: TokenwiseEngine,
        stages: list[TokenwiseStage],
        pool: EnginePool,
        callers: Sequence[int],
        program: Program,
    ) -> EngineTimes:
        began = time.perf_counter()
        handles = [pool.tokenwise(stage) for stage in stages]
        opened = (time.perf_counter() - began) / len(handles)
        limits = {entry.value.name: entry.limit for entry in program.inputs}
        named = zip(engine.inputs, stages[0].operands, strict=True)
        inputs = [self._values(port, limits.get(name)) for port, name in named]

        def ring() -> Ring:
            calls = [self._bound(handle, inputs, engine.outputs) for handle in handles]
            return [call.run for call in calls for _ in range(CALLS_PER_WEIGHTS)]

        return EngineTimes(engine.name, "", opened, self._measure(ring, callers))

    def _attention(self, engine: AttentionEngine, variant: str) -> EngineTimes:
        self._progress(f"{engine.name}.{variant}")
        began = time.perf_counter()
        handle = self._pool.attention(engine.name, variant)
        opened = time.perf_counter() - began
        inputs, outputs = engine.ports(variant)
        tiles = [[self._values(port) for port in inputs[1:3]] for _ in range(self._tiles)]
        rest = [self._values(port) for port in inputs[3:]]

        def ring() -> Ring:
            call = self._bound(handle, [self._values(inputs[0]), *tiles[0], *rest], outputs)

            def rebound(tile: list[Any]) -> Callable[[], None]:
                def run() -> None:
                    for port, tensor in enumerate(tile, 1):
                        call.bind_input(port, tensor)
                    call.run()

                return run

            return [rebound(tile) for tile in tiles]

        return EngineTimes(engine.name, variant, opened, self._measure(ring, self._callers))

    def _alone(self, engine: ScanEngine | ExpertsEngine, variant: str) -> EngineTimes:
        """Of one caller at a time, as there is one: every number of callers has its time."""
        self._progress(f"{engine.name}.{variant}")
        began = time.perf_counter()
        handle = self._pool.attention(engine.name, variant)
        opened = time.perf_counter() - began
        inputs, outputs = engine.ports(variant)

        def ring() -> Ring:
            return [self._bound(handle, [self._of_scan(port) for port in inputs], outputs).run]

        seconds = self._measure(ring, (1,))["1"]
        return EngineTimes(engine.name, variant, opened, dict.fromkeys(map(str, self._callers), seconds))

    def _of_scan(self, port: Port) -> Any:
        values = self._random.standard_normal(port.shape).astype(port.dtype)
        sign = SIGNS.get(port.name)
        return self._backend.tensor(values if sign is None else sign * np.abs(values))

    def _bound(self, handle: EngineHandle, inputs: Iterable[Any], outputs: Iterable[Port]) -> Call:
        call = handle.new_call()
        for port, tensor in enumerate(inputs):
            call.bind_input(port, tensor)
        for port, output in enumerate(outputs):
            call.bind_output(port, self._backend.tensor(np.empty(output.shape, output.dtype)))
        return call

    def _values(self, port: Port, limit: int | None = None) -> Any:
        """Random values of a port: normal ones, or whole numbers below ``limit``."""
        if np.dtype(port.dtype).kind == "f":
            return self._backend.tensor(self._random.standard_normal(port.shape).astype(port.dtype))
        return self._backend.tensor(self._random.integers(0, limit or 2, port.shape).astype(port.dtype))

    def _measure(self, ring: Callable[[], Ring], callers: Sequence[int]) -> dict[str, float]:
        return {str(number): _call_seconds([ring() for _ in range(number)], self._seconds) for number in callers}


def _stages_of(program: Program, engine: str) -> list[TokenwiseStage]:
    """A few stages of a token-wise engine, each with weights of its own."""
    distinct = {stage.weights: stage for stage, used in program.bindings if used.name == engine}
    return list(distinct.values())[:MOST_WEIGHTS]


def _held_variants(bundle: Bundle, engine: AttentionEngine) -> list[str]:
    """The variants for single inputs that the bundle holds, whatever variants there are."""
    if not any(stage.engine == engine.name for stage in bundle.program.attentions):
        return []
    prefix, suffix = bundle.engine_file(engine.name, "|").split("|")
    names = (name for name in bundle.manifest.files if name.startswith(prefix) and name.endswith(suffix))
    variants = (name[len(prefix) : -len(suffix)] for name in names)
    return sorted(variant for variant in variants if variant and variant not in AttentionEngine.PACKED_VARIANTS)


def _call_seconds(rings: Sequence[Ring], least: float) -> float:
    """The median seconds of a call, with a thread for each of ``rings`` that calls for ``least`` seconds."""
    start = threading.Barrier(len(rings))

    def work(ring: Ring) -> list[float]:
        ring[0]()  # the first call allocates
        seconds: list[float] = []
        start.wait()
        began = last = time.perf_counter()
        while len(seconds) < max(LEAST_CALLS, len(ring)) or last - began < least:
            ring[len(seconds) % len(ring)]()
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds

    with ThreadPoolExecutor(len(rings)) as pool:
        return statistics.median([second for seconds in pool.map(work, rings) for second in seconds])
