"""Measures how long each engine of a bundle takes on this machine, called as a run calls it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import PROFILE_VERSION, DeviceProfile, Network, engines_digest
from twoheads.graphs.program.program import Program
from twoheads.runtime.backends.registry import open_host_backend
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.execution.crew import Crew, available_threads
from twoheads.runtime.measurement.engine_meter import EngineMeter

__all__ = ["DEFAULT_NETWORK", "copy_speed", "machine_text", "profile_bundle"]

DEFAULT_NETWORK = Network(bytes_per_second=1.25e9, round_seconds=1e-3)
"""An assumption: 10 Gbit/s, and a millisecond to start a stage on all workers."""

COPY_BYTES = 64 << 20
"""Larger than most caches, and than what an allocator keeps for itself."""

EMPTY_STAGES, EMPTY_ROWS = 50, 2000


def profile_bundle(
    path: str | os.PathLike[str],
    *,
    backend: str = "onnxruntime",
    precision: str = "f32",
    threads: int | None = None,
    key_tile: int | None = None,
    network: Network = DEFAULT_NETWORK,
    price_per_hour: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> DeviceProfile:
    """Measures the engines of the bundle in folder ``path``: medians of warm calls on random values.

    Every engine is called from one thread, and from as many at the same time as a run would have.

    Args:
        path: The bundle.
        backend: What runs the engines.
        precision: In what it multiplies.
        threads: The most threads that a run may have; ``None`` for every processor that the process may use.
        key_tile: Tokens of a key tile, a width that the bundle offers; its own if not given.
        network: Between workers, which can't be measured here.
        price_per_hour: Of a machine like this one.
        progress: Told of every engine file before it is measured.

    Raises:
        BundleError: It is not a bundle, or an engine can't be opened.
        InputError: An argument is not one of the choices, or the lowering is one whose time can't be predicted.
    """
    bundle = read_bundle(path)
    if key_tile is not None:
        bundle = bundle.with_key_tile(key_tile)
    _check_lowering(bundle.program)
    most = threads or available_threads()
    callers = tuple(sorted({1, most}))
    measuring = EngineMeter(
        bundle, open_host_backend(backend, precision=precision, threads=most), callers, progress or (lambda _name: None)
    )
    engines = (*measuring.engines(), *measuring.alone())
    stage_seconds, row_seconds = _crew_seconds(most)
    program = bundle.program
    return DeviceProfile(
        version=PROFILE_VERSION,
        machine=machine_text(),
        backend=backend,
        precision=precision,
        model=program.name,
        block_size=program.block_size,
        key_tile=program.key_tile,
        engines_digest=engines_digest(program),
        threads=callers,
        engines=engines,
        stage_seconds=stage_seconds,
        row_seconds=row_seconds,
        copy_bytes_per_second=copy_speed(fresh=False),
        fresh_bytes_per_second=copy_speed(fresh=True),
        sampling=measuring.sampling(engines),
        network=network,
        price_per_hour=price_per_hour,
    )


def _check_lowering(program: Program) -> None:
    for engine in program.engines:
        if engine.kind not in ("tokenwise", "attention", "scan"):
            problem = f"computes attention with {type(engine).__name__} {engine.name}, whose time is not predicted"
            raise InputError(program.name, problem, "compile it with --lowering tile")


def _crew_seconds(threads: int) -> tuple[float, float]:
    """What a stage costs beside its rows, and a row beside its calls, where nothing is computed."""

    def nothing(_row: int) -> None:
        pass

    with Crew(threads) as crew:

        def elapsed(stages: int, rows: int) -> float:
            began = time.perf_counter()
            for _ in range(stages):
                crew.run(range(rows), lambda: nothing)
            return (time.perf_counter() - began) / stages

        elapsed(1, threads)  # starts the threads
        stage, many = elapsed(EMPTY_STAGES, threads), elapsed(3, EMPTY_ROWS)
    return stage, max(many - stage, 1e-9) / EMPTY_ROWS


def copy_speed(*, fresh: bool) -> float:
    """Bytes that one thread copies in a second, to memory that was used before or that is ``fresh`` from the system."""
    source, used = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    seconds: list[float] = []
    for _ in range(5):
        target = np.empty(COPY_BYTES, np.uint8) if fresh else used
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return COPY_BYTES / statistics.median(seconds)


def machine_text() -> str:
    """Processor, cores and memory of this machine in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    cores = available_threads()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return f"{cores} cores of {processor}"
    return f"{cores} cores of {processor}, {memory / 2**30:.0f} GiB"
