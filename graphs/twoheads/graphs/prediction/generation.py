"""How long a continuation will take: the steps that it makes, from the times that a profile has of their forms.

A step's shape is fixed, so its time depends on its form alone: the rows, and the capacity that holds its context.
Steps that write in place read the keys that are there and no others: between two forms their times lie on a line.
Behind the widest capacity it goes layer by layer, over tiles of that size, each of which takes the same time. Whole
blocks of a prompt take what a run takes longer with them than without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.variants.step_calls import Continuation, Made, RunCall, StepCall
from twoheads.graphs.variants.steps import CAPACITIES, STEP, Steps

__all__ = ["HEAD", "GenerationTime", "StepForm", "predict_generation", "step_forms"]

HEAD = f"{STEP}head"
"""What a profile calls the step from a row of hidden states to logits; those of one row have it in their time."""

IN_PLACE = "onnxruntime"
"""The backend whose steps write in place."""

TILES = (2, 3)
"""Tiles of whole blocks whose steps are measured; the time of others lies on a line."""


@dataclass(frozen=True, slots=True)
class StepForm:
    """A kind of step whose time a profile has.

    Attributes:
        name: In the profile.
        call: One of the kind.
    """

    name: str
    call: StepCall


@dataclass(frozen=True, slots=True)
class GenerationTime:
    """Seconds, where engines are open.

    Attributes:
        first_token_seconds: Until the first new token.
        later_seconds: For all others together.
        last_token_seconds: For the last one alone, without what is computed again behind it.
        tokens_per_second: Of all but the first; ``None`` where there are none.
    """

    first_token_seconds: float
    later_seconds: float
    last_token_seconds: float
    tokens_per_second: float | None


def step_forms(steps: Steps) -> Iterator[StepForm]:
    """All forms that a continuation may take, as short as each can be."""
    limit, block = steps.program.max_length, steps.program.block_size
    for rows in steps.rows:
        forms = [(_name(steps, rows, low), low) for low in _shortest(steps)]
        if steps.capacity(CAPACITIES[-1] + 1) is None:
            forms += [(f"{STEP}{rows}_tiles_{tiles}", (tiles - 1) * CAPACITIES[-1] + 1) for tiles in TILES]
        for name, blocks in forms:
            if limit is None or blocks * block < limit.length:
                yield StepForm(name, StepCall(rows, blocks))


def _shortest(steps: Steps) -> list[int]:
    """The least whole blocks that each capacity holds and the one before does not, descending."""
    found = {steps.capacity(low): low for low in (*(capacity + 1 for capacity in CAPACITIES[-2::-1]), 0)}
    return [low for capacity, low in found.items() if capacity is not None]


def predict_generation(steps: Steps, profile: DeviceProfile, prompt: int, new: int, threads: int) -> GenerationTime:
    """The time of ``new`` tokens behind ``prompt`` ones, on kernels of ``threads`` threads.

    Raises:
        InputError: The profile does not have the times of steps; or the model has an encoder, or mixtures of experts
            that are gathered, whose steps differ from token to token.
    """
    if steps.source or steps.layered:
        what = "has an encoder" if steps.source else "computes experts by expert"
        raise InputError("--generate", f"has no times of a model that {what}", "leave out --device")
    known: dict[tuple[int, int], float] = {}
    growing = {rows for rows in steps.rows if profile.backend == IN_PLACE and steps.reaches_in_place(rows, 0)}

    @cache
    def run_seconds(blocks: int) -> float:
        """Of a run over so many blocks, which the threads share evenly."""
        if blocks % 2:
            return (run_seconds(blocks - 1) + run_seconds(blocks + 1)) / 2
        limit, length = steps.program.max_length, blocks * steps.program.block_size
        length = length if limit is None else min(length, limit.length)
        if not length:
            return 0.0
        return predict_run(make_schedule(steps.program, length, output="hidden"), profile, threads).seconds

    def seconds(call: Made) -> float:
        if isinstance(call, RunCall):
            return run_seconds(call.first + call.blocks) - run_seconds(call.first)
        key = call.rows, call.blocks if call.rows in growing else _shape(steps, call.blocks)
        if key not in known:
            known[key] = _seconds(steps, profile, call, threads)
            if call.rows in growing and steps.has_room(call.rows, call.blocks):
                known[key] += _growth(steps, profile, call, threads)
        return known[key]

    continuation = Continuation(steps, prompt, new)
    head = _time(profile, HEAD, threads)
    runs = [call for call in continuation.prompt if isinstance(call, RunCall)]
    begin = [RunCall(0, runs[-1].first + runs[-1].blocks, False)] if runs else []
    first = sum(map(seconds, (*begin, *continuation.prompt[len(runs) :]))) + head
    later = last = 0.0
    for calls in continuation.later():
        last = seconds(calls[0])
        later += sum(map(seconds, calls))
    return GenerationTime(first, later, last, (new - 1) / later if later else None)


def _shape(steps: Steps, blocks: int) -> int:
    """Equal where the steps behind so many blocks have equal calls."""
    capacity = steps.capacity(blocks)
    return capacity if capacity is not None else CAPACITIES[-1] + _tiles(blocks)


def _tiles(blocks: int) -> int:
    return -(-blocks // CAPACITIES[-1])


def _name(steps: Steps, rows: int, blocks: int) -> str:
    return f"{STEP}{rows}_{steps.capacity(blocks)}"


def _seconds(steps: Steps, profile: DeviceProfile, call: StepCall, threads: int) -> float:
    if steps.capacity(call.blocks) is not None:
        return _time(profile, _name(steps, call.rows, call.blocks), threads)
    few, more = (_time(profile, f"{STEP}{call.rows}_tiles_{tiles}", threads) for tiles in TILES)
    return few + max(more - few, 0.0) * (_tiles(call.blocks) - TILES[0])


def _growth(steps: Steps, profile: DeviceProfile, call: StepCall, threads: int) -> float:
    """What a step that writes in place takes longer than the shortest one of its form: keys take equal times."""
    limit, block = steps.program.max_length, steps.program.block_size
    lows = sorted(low for low in _shortest(steps) if limit is None or low * block < limit.length)
    at = max(number for number, low in enumerate(lows) if low <= call.blocks)
    near = lows[at : at + 2] if at + 1 < len(lows) else lows[-2:]
    if len(near) < 2:
        return 0.0
    less, more = (_time(profile, _name(steps, call.rows, low), threads) for low in near)
    return max(more - less, 0.0) / (near[1] - near[0]) * (call.blocks - lows[at])


def _time(profile: DeviceProfile, name: str, threads: int) -> float:
    if profile.times(name) is None:
        problem = f"has no time of {name}, which this continuation takes"
        fix = "make a profile of steps as well: twoheads profile BUNDLE --generation -o PROFILE.json"
        raise InputError(f"device profile of {profile.model}", problem, fix)
    return profile.call_seconds(name, "", threads)
