"""What a run feeds its engines: real blocks, for whoever compares or calibrates engines on their own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.build.engine_jobs import engine_jobs
from twoheads.export.verify_input import verify_inputs, verify_lengths
from twoheads.graphs.program import Port, Program
from twoheads.graphs.program_lengths import input_axes, value_rows
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backend import Backend, Call, EngineHandle, open_backend
from twoheads.runtime.bundle_reader import Bundle

__all__ = ["RecordingBackend", "record_inputs"]

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


class RecordingBackend:
    """Passes everything on to ``backend`` and keeps copies of what the first calls of every open engine were given.

    Args:
        backend: What runs the engines.
        calls: Of how many calls the inputs are kept.
    """

    def __init__(self, backend: Backend, calls: int = 1) -> None:
        self.name = backend.name
        self._backend = backend
        self._calls = calls
        self._seen: dict[str, list[list[Arrays]]] = {}

    def tensor(self, array: npt.NDArray[Any]) -> _Tensor:
        """The backend's tensor together with its array, which a call copies."""
        return _Tensor(self._backend.tensor(array), array)

    def load_engine(
        self,
        path: Path,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
        threads: int = 1,
        own_weights: bool = False,
    ) -> EngineHandle:
        """As the backend's own."""
        kept: list[Arrays] = []
        handle = self._backend.load_engine(path, inputs, outputs, weights, threads=threads, own_weights=own_weights)
        self._seen.setdefault(path.name, []).append(kept)
        return _RecordingEngine(handle, tuple(port.name for port in inputs), kept, self._calls)

    def inputs(self, file: str, number: int) -> tuple[Arrays, ...]:
        """What the ``number``-th engine that was opened from the file called ``file`` was given, call by call."""
        opened = self._seen.get(file, [])
        return tuple(opened[number]) if number < len(opened) else ()


@dataclass(frozen=True, slots=True)
class _Tensor:
    inner: Any
    array: npt.NDArray[Any]


class _RecordingEngine:
    def __init__(self, handle: EngineHandle, ports: tuple[str, ...], kept: list[Arrays], calls: int) -> None:
        self._handle, self._ports, self._kept, self._calls = handle, ports, kept, calls

    def new_call(self) -> Call:
        return _RecordingCall(self._handle.new_call(), self._ports, self._kept, self._calls)


class _RecordingCall:
    def __init__(self, call: Call, ports: tuple[str, ...], kept: list[Arrays], calls: int) -> None:
        self._call, self._ports, self._kept, self._calls = call, ports, kept, calls
        self._bound: dict[str, npt.NDArray[Any]] = {}

    def bind_input(self, port: int, tensor: _Tensor) -> None:
        self._bound[self._ports[port]] = tensor.array
        self._call.bind_input(port, tensor.inner)

    def bind_output(self, port: int, tensor: _Tensor) -> None:
        self._call.bind_output(port, tensor.inner)

    def run(self) -> None:
        if len(self._kept) < self._calls:
            self._kept.append({name: np.array(self._bound[name]) for name in self._ports})
        self._call.run()


def record_inputs(
    bundle: Bundle,
    *,
    length: int | Mapping[str, int] | None = None,
    text: str | None = None,
    tokens: npt.NDArray[Any] | None = None,
    calls: int = 1,
) -> dict[str, tuple[Arrays, ...]]:
    """What a run on ONNX Runtime gives to each engine, call by call, by the name of its ``EngineJob``.

    Engines that the run does not call are missing.

    Args:
        bundle: What runs.
        length: Tokens; by default enough for two key tiles and a block that is not full, if the model takes that many.
        text: As for :func:`~twoheads.export.verifier.verify`.
        tokens: Likewise.
        calls: Of how many calls the inputs are kept; the first ones.

    Raises:
        InputError: The input does not fit.
    """
    program = bundle.program
    backend = RecordingBackend(open_backend("onnxruntime"), calls)
    # One thread opens engines in the order of the program, as the jobs are: that tells one set of weights from another.
    loaded = load(bundle.path, backend=backend, threads=1, check="size", one_call=False)
    lengths = verify_lengths(program, _default_length(program) if length is None else length)
    given = verify_inputs(loaded, lengths, text=text, tokens=tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _run(loaded, given, value_rows(program.value(program.hidden), lengths))
    return _by_job(bundle, backend)


def _run(bundle: LoadedBundle, given: Arrays, rows: int) -> None:
    """All of the body, and where there is a head, a block of it."""
    if bundle.program.logits is None or bundle.program.pooled_logits:
        bundle.run(given, output="hidden" if bundle.program.logits is None else "logits")
    else:
        bundle.run(given, output="logits", positions=range(min(rows, bundle.program.block_size)))


def _default_length(program: Program) -> int | dict[str, int]:
    if not input_axes(program):
        return {}
    wanted = 2 * program.key_tile + program.block_size // 2
    return min(wanted, *(limit.length for limit in program.limits)) if program.limits else wanted


def _by_job(bundle: Bundle, backend: RecordingBackend) -> dict[str, tuple[Arrays, ...]]:
    found: dict[str, tuple[Arrays, ...]] = {}
    numbers = Counter[str]()
    for job in engine_jobs(bundle):
        if calls := backend.inputs(job.file.rpartition("/")[2], numbers[job.file]):
            found[job.name] = calls
        numbers[job.file] += 1
    return found
