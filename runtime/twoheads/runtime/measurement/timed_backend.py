"""Where the time of a run goes: a backend around another one that times every engine call.

It is put around the backend by whoever measures; the stages know nothing of it, so an ordinary run pays nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twoheads.graphs.program.program import Program
from twoheads.graphs.variants.one_block import ONE_BLOCK
from twoheads.runtime.backends.protocol import Backend, Call, EngineFile, EngineHandle
from twoheads.runtime.reports.report import Report
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["Breakdown", "CallTime", "TimedBackend", "TimedRun", "break_down", "run_timed"]


@dataclass(slots=True)
class CallTime:
    """What one thread spent inside calls of one engine; only that thread writes it.

    Attributes:
        engine: The engine's name in the program.
        calls: Their number.
        seconds: Wall time inside them.
        host_seconds: Processor time that the thread spent before them, since its last call of any engine.
    """

    engine: str
    calls: int = 0
    seconds: float = 0.0
    host_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the workers' time went, in seconds summed over the workers; the parts add up to ``threads * seconds``.

    Where one call computes a whole block with all threads, they add up to ``seconds``.

    Attributes:
        tokenwise: Inside calls of token-wise engines of the body, and of engines that hold attention beside such.
        attention: Inside calls of attention engines; the merge of tiles is a part of these.
        scan: Inside calls of scans, which one worker makes: the others are idle, or compute in its kernels, meanwhile.
        head: Inside calls of the head's engines.
        host: Processor time outside of calls: scheduling, binding, copies, and what the host does with whole values.
        idle: The rest: workers without work, or waiting for the processor or for the interpreter's lock.
    """

    tokenwise: float
    attention: float
    scan: float
    head: float
    host: float
    idle: float


@dataclass(frozen=True, slots=True)
class TimedRun:
    """A run with its times.

    Attributes:
        report: The run's own; the result itself is not kept.
        seconds: From the call to the result.
        breakdown: Where they went.
    """

    report: Report
    seconds: float
    breakdown: Breakdown


class TimedBackend:
    """Passes everything on to ``backend``, with a clock around every call: about a microsecond each.

    Args:
        backend: What runs the engines.
    """

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.tensor = backend.tensor
        self.in_place, self.shares_packed = backend.in_place, backend.shares_packed
        self._backend = backend
        self._times: list[CallTime] = []
        self._clock = _ThreadClock()

    def load_engine(self, file: EngineFile) -> EngineHandle:
        """As the backend's own; engines are told apart by the first part of their file's name."""
        handle = self._backend.load_engine(file)
        return _TimedEngine(handle, file.path.name.partition(".")[0], self._times, self._clock)

    def start(self) -> None:
        """Forgets what was timed so far; what this thread does from now on until its first call is the host's time."""
        self.take()
        self._clock.ended = time.thread_time()

    def take(self) -> list[CallTime]:
        """The times of all calls that were made since the last time; none may be running."""
        times = [entry for entry in self._times if entry.calls]
        self._times.clear()
        return times

    def seconds_since_call(self) -> float:
        """Processor time of this thread since its last call, or since the start."""
        return time.thread_time() - self._clock.ended


class _ThreadClock(threading.local):
    """The thread's processor time at the end of its last call: 0 at first, as workers are new threads in every run."""

    ended = 0.0


class _TimedEngine:
    def __init__(self, handle: EngineHandle, engine: str, times: list[CallTime], clock: _ThreadClock) -> None:
        self._handle = handle
        self._engine = engine
        self._times = times
        self._clock = clock

    def new_call(self) -> Call:
        entry = CallTime(self._engine)
        self._times.append(entry)
        return _TimedCall(self._handle.new_call(), entry, self._clock)


class _TimedCall:
    def __init__(self, call: Call, entry: CallTime, clock: _ThreadClock) -> None:
        self.bind_input = call.bind_input
        self.bind_output = call.bind_output
        self._run = call.run
        self._entry = entry
        self._clock = clock

    def run(self) -> None:
        self._entry.host_seconds += time.thread_time() - self._clock.ended
        began = time.perf_counter()
        self._run()
        self._entry.seconds += time.perf_counter() - began
        self._entry.calls += 1
        self._clock.ended = time.thread_time()


def run_timed(bundle: LoadedBundle, backend: TimedBackend, tokens: Any, output: str) -> TimedRun:
    """Runs one input of ``bundle``, which was loaded with ``backend``.

    Args:
        bundle: Its engines should be open (it has run before); opening them would count as the host's time.
        backend: What the bundle was loaded with.
        tokens: As :meth:`~twoheads.runtime.runs.session.LoadedBundle.run` takes them.
        output: Likewise.

    Raises:
        InputError: As ``run``.
    """
    began = time.perf_counter()
    backend.start()
    result = bundle.run(tokens, output)
    own, seconds = backend.seconds_since_call(), time.perf_counter() - began
    times = backend.take()
    # The kernels of a whole block share the threads, so that its call is everybody's.
    workers = 1 if any(entry.engine == ONE_BLOCK for entry in times) else bundle.threads
    breakdown = break_down(bundle.program, times, seconds * workers, own)
    return TimedRun(result.report, seconds, breakdown)


def break_down(program: Program, times: Sequence[CallTime], seconds: float, own: float) -> Breakdown:
    """Sorts the time of a run.

    Args:
        program: What ran.
        times: Of the run's engine calls.
        seconds: Wall time of the run, times the number of workers.
        own: Processor time of the thread that ran it, since its own last call.
    """
    body = {stage.engine for stage in program.body}
    head = {stage.engine for stage in program.head} - body
    kinds = {engine.name: engine.kind for engine in program.engines}
    names = {"tokenwise": "tokenwise", "scan": "scan"}
    inside: dict[str, float] = dict.fromkeys(("tokenwise", "attention", "scan", "head"), 0.0)
    for entry in times:
        kind = kinds.get(entry.engine, "tokenwise")
        inside["head" if entry.engine in head else names.get(kind, "attention")] += entry.seconds
    host = own + sum(entry.host_seconds for entry in times)
    return Breakdown(**inside, host=host, idle=max(seconds - sum(inside.values()) - host, 0.0))
