"""What a run feeds its engines: real blocks, for whoever compares or calibrates engines on their own."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.engines.jobs import WIDE_VARIANTS, engine_jobs
from twoheads.export.engines.run_inputs import verify_inputs, verify_lengths
from twoheads.graphs.program.lengths import input_axes, value_rows
from twoheads.graphs.program.program import Program
from twoheads.runtime import LoadedBundle
from twoheads.runtime.backends.protocol import Backend, Call, EngineFile, EngineHandle
from twoheads.runtime.backends.registry import open_backend
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["InputRecorder", "RecordingBackend", "record_inputs", "recorded_lengths"]

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(slots=True)
class _Kept:
    """Copies of what calls of one open engine were given: of the first ones, or of as many drawn from all of them."""

    most: int
    draw: bool
    arrays: list[Arrays] = field(default_factory=list[Arrays])
    offered: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - the same draws in every run

    def take(self) -> tuple[Arrays, ...]:
        """What was kept; from now on it starts anew."""
        found, self.arrays, self.offered = tuple(self.arrays), [], 0
        return found

    def offer(self, bound: Arrays) -> None:
        """Keeps a copy while there is room; or of every call with the same probability, by reservoir sampling."""
        place = self.offered
        if place >= self.most and self.draw:
            place = self.random.randrange(self.offered + 1)
        self.offered += 1
        if place < self.most:
            self.arrays[place : place + 1] = [{name: np.array(array) for name, array in bound.items()}]


class RecordingBackend:
    """Passes everything on to ``backend`` and keeps copies of what calls of every open engine were given.

    Args:
        backend: What runs the engines.
        calls: Of how many calls of an engine the inputs are kept.
        draw: Whether they are drawn from all calls, every time the same, instead of being the first ones.
    """

    in_place = shares_packed = False

    def __init__(self, backend: Backend, calls: int = 1, *, draw: bool = False) -> None:
        self.name = backend.name
        self._backend = backend
        self._calls, self._draw = calls, draw

    def tensor(self, array: npt.NDArray[Any]) -> _Tensor:
        """The backend's tensor together with its array, which a call copies."""
        return _Tensor(self._backend.tensor(array), array)

    def load_engine(self, file: EngineFile) -> EngineHandle:
        """As the backend's own."""
        handle = self._backend.load_engine(file)
        return _RecordingEngine(handle, tuple(port.name for port in file.inputs), _Kept(self._calls, self._draw))


@dataclass(frozen=True, slots=True)
class _Tensor:
    inner: Any
    array: npt.NDArray[Any]


class _RecordingEngine:
    def __init__(self, handle: EngineHandle, ports: tuple[str, ...], kept: _Kept) -> None:
        self._handle, self._ports, self.kept = handle, ports, kept

    def new_call(self) -> Call:
        return _RecordingCall(self._handle.new_call(), self._ports, self.kept)


class _RecordingCall:
    def __init__(self, call: Call, ports: tuple[str, ...], kept: _Kept) -> None:
        self._call, self._ports, self._kept = call, ports, kept
        self._bound: dict[str, npt.NDArray[Any]] = {}

    def bind_input(self, port: int, tensor: _Tensor) -> None:
        self._bound[self._ports[port]] = tensor.array
        self._call.bind_input(port, tensor.inner)

    def bind_output(self, port: int, tensor: _Tensor) -> None:
        self._call.bind_output(port, tensor.inner)

    def run(self) -> None:
        self._kept.offer({name: self._bound[name] for name in self._ports})
        self._call.run()


def record_inputs(
    bundle: Bundle,
    *,
    length: int | Mapping[str, int] | None = None,
    text: str | None = None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
    calls: int = 1,
) -> dict[str, tuple[Arrays, ...]]:
    """What a run on ONNX Runtime gives to each engine, call by call, by the name of its ``EngineJob``.

    Engines that the run does not call are missing.

    Args:
        bundle: What runs.
        length: Tokens; by default enough for two key tiles and a block that is not full, if the model takes that many.
        text: As for :func:`~twoheads.export.verification.verifier.verify`.
        tokens: Likewise.
        calls: Of how many calls the inputs are kept; the first ones.

    Raises:
        InputError: The input does not fit.
    """
    recorder = InputRecorder(bundle, calls)
    recorder.run(length, text=text, tokens=tokens)
    return recorder.take()


class InputRecorder:
    """Runs ``bundle`` on ONNX Runtime, as often as asked, and records what its engines are given.

    Args:
        bundle: What runs.
        calls: Of how many calls of every engine, or engine and set of weights, the inputs are kept.
        draw: As for :class:`RecordingBackend`.
        narrow: As a run goes whose values have a smaller range than float32's: rows are merged, not added up.
    """

    def __init__(self, bundle: Bundle, calls: int = 1, *, draw: bool = False, narrow: bool = False) -> None:
        self._bundle = bundle
        self._backend = RecordingBackend(open_backend("onnxruntime"), calls, draw=draw)
        run = _without_wide_variants(bundle) if narrow else bundle
        self.loaded = LoadedBundle(run, backend=self._backend, precision="f32", threads=1, fused=False)

    def run(
        self,
        length: int | Mapping[str, int] | None = None,
        *,
        text: str | None = None,
        tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        """Runs all of the body and a block of the head; arguments as for :func:`record_inputs`.

        Raises:
            InputError: The input does not fit.
        """
        program = self._bundle.program
        lengths = recorded_lengths(program, length)
        given = verify_inputs(self.loaded, lengths, text=text, tokens=tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(self.loaded, given, value_rows(program.value(program.hidden), lengths))

    def take(self) -> dict[str, tuple[Arrays, ...]]:
        """What was recorded since the last time, by the name of an ``EngineJob``; engines not called are missing."""
        recorded: dict[str, tuple[Arrays, ...]] = {}
        opened = self.loaded.opened
        for job in engine_jobs(self._bundle):
            engine = opened.get(job.key)
            if isinstance(engine, _RecordingEngine) and (calls := engine.kept.take()):
                recorded[job.name] = calls
        return recorded


def recorded_lengths(program: Program, length: int | Mapping[str, int] | None = None) -> dict[str, int]:
    """The length of every input axis in a recorded run.

    Raises:
        InputError: ``length`` is wrong.
    """
    return verify_lengths(program, _default_length(program) if length is None else length)


def _without_wide_variants(bundle: Bundle) -> Bundle:
    names = {bundle.engine_file(engine.name, wide) for engine in bundle.program.engines for wide in WIDE_VARIANTS}
    kept = {name: entry for name, entry in bundle.manifest.files.items() if name not in names}
    return replace(bundle, manifest=replace(bundle.manifest, files=kept))


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
