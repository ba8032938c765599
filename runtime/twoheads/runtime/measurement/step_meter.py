"""Measures the steps of generating: one of each form, over keys and values that nobody computed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile, EngineTimes
from twoheads.graphs.prediction.generation import HEAD, StepForm, step_forms
from twoheads.runtime.backends.registry import open_host_backend
from twoheads.runtime.bundle.reader import Bundle, read_bundle
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.kept.held_sequence import KeptSequence
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.steps.step import Heads

__all__ = ["with_step_times"]

MEASURE_SECONDS = 0.6
"""Of one form with one number of threads; longer where a step is, as there are several."""

LEAST_STEPS = 5


def with_step_times(
    profile: DeviceProfile, path: str | os.PathLike[str], progress: Callable[[str], None]
) -> DeviceProfile:
    """A bundle's profile with the times of all forms of its steps, each as if it were one engine.

    Args:
        profile: What was measured on this machine; steps are as well, by the threads that share their kernels.
        path: The bundle.
        progress: Told of every form before it is measured.

    Raises:
        InputError: The bundle generates nothing, or its steps are not all alike: it has an encoder, or mixtures of
            experts that are gathered.
    """
    bundle, found = read_bundle(path), dict[str, dict[str, float]]()
    backend = open_host_backend(profile.backend, precision=profile.precision, threads=profile.threads[-1])
    opened: dict[str, float] = {}
    for number in profile.threads:
        engines = StepEngines(bundle, bundle.open_weights(), backend, threads=number, precision=profile.precision)
        if engines.steps.source or engines.steps.layered:
            raise InputError("--generation", "measures steps that are all alike", "leave it out for such a model")
        for name, call in _calls(bundle, engines, progress):
            began = time.perf_counter()
            call()
            opened[name] = time.perf_counter() - began
            found.setdefault(name, {})[str(number)] = _median(call)
    measured = (EngineTimes(name, "", opened[name], times) for name, times in found.items())
    return replace(profile, engines=(*profile.engines, *measured))


def _calls(
    bundle: Bundle, engines: StepEngines, progress: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What to call for every form, by the profile's name for it."""
    progress(HEAD)
    heads = Heads(engines, 1)
    hidden = np.zeros((1, engines.steps.program.value(engines.steps.program.hidden).block_shape(1)[-1]), np.float32)

    def head() -> None:
        heads.logits(hidden)

    yield HEAD, head
    for form in step_forms(engines.steps):
        progress(form.name)
        with _filled(bundle, engines, form.call.blocks) as context:
            yield form.name, _Step(context, form)


class _Step:
    """A step of one form, made again and again.

    Args:
        context: As many whole blocks as the form has.
        form: Which.
    """

    def __init__(self, context: Context, form: StepForm) -> None:
        self._context, self._start, self._rows = context, len(context), form.call.rows
        program = context.engines.steps.program
        block, limit = program.block_size, program.max_length
        count = block - 1 if self._rows == block else self._rows
        left = block - 1 if limit is None else min(block - 1, limit.length - self._start)
        self._tokens = [0] * max(1, min(count, left))
        self._end = self._start + left

    def __call__(self) -> None:
        """The step, within its block; what is open is not filled."""
        if len(self._context) + len(self._tokens) > self._end:
            self._context.rollback(self._start)
        if self._rows == 1:
            self._context.step(self._tokens[0])
        else:
            self._context.extend(self._tokens, self._rows)


def _filled(bundle: Bundle, engines: StepEngines, blocks: int) -> Context:
    """A context of so many whole blocks of numbers that are none of a model.

    Arrays are filled beyond them as well: memory that nobody wrote to is read faster than other memory.
    """
    context = Context(engines, bundle.open_weights(), bundle, KeptSequence(engines.steps))
    block = engines.steps.program.block_size
    kept, random = context.kept, np.random.default_rng(0)
    kept.prepare(blocks)
    full = (array for segment in kept.segments for array in segment)
    for array in (*full, *kept.past, *kept.opened, *context.states.written()):
        array[...] = random.standard_normal(array.shape, np.float32)
    context.restore([0] * (blocks * block), blocks * block, blocks, max(0, blocks - 1) * block)
    return context


def _median(call: Callable[[], None]) -> float:
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < LEAST_STEPS or time.perf_counter() - began < MEASURE_SECONDS:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
