"""The time of a continuation is that of its steps, each once; what a profile lacks, and what has none, is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.runtime.generation.decoders import BEYOND, BLOCK, bundle
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile, EngineTimes
from twoheads.graphs.prediction.generation import HEAD, predict_generation, step_forms
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.variants.step_calls import Continuation, Made, RunCall
from twoheads.graphs.variants.steps import CAPACITIES, Steps

NAMES = ("llama", "gemma", "mamba")


def _steps(name: str) -> Steps:
    return bundle(name).generation.steps


def _profile(name: str, head: float, **seconds: float) -> DeviceProfile:
    """A second for every form but those named."""
    times = {HEAD: head} | {form.name: seconds.get(form.name, 1.0) for form in step_forms(_steps(name))}
    engines = tuple(EngineTimes(form, "", 1.0, {"1": spent, "2": spent / 2}) for form, spent in times.items())
    known = profile_of(bundle(name).program)
    return replace(known, engines=(*known.engines, *engines))


def _run_seconds(steps: Steps, profile: DeviceProfile, blocks: int, threads: int) -> float:
    """Of a run over so many blocks; of an odd number the mean of those beside it."""
    if blocks % 2:
        return sum(_run_seconds(steps, profile, blocks + one, threads) for one in (-1, 1)) / 2
    if not blocks:
        return 0.0
    return predict_run(make_schedule(steps.program, blocks * BLOCK, output="hidden"), profile, threads).seconds


def _expected(steps: Steps, profile: DeviceProfile, calls: Iterable[Made], threads: int) -> float:
    """A second a step, shared by the threads, and what a run takes longer with its blocks than without."""
    total = 0.0
    for call in calls:
        if isinstance(call, RunCall):
            total += _run_seconds(steps, profile, call.first + call.blocks, threads)
            total -= _run_seconds(steps, profile, call.first, threads)
        else:
            total += 1 / threads
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (3, 40), (70, 60), ((BEYOND - 2) * BLOCK + 5, 40)])
def test_every_step_is_counted_once(name, prompt, new):
    steps = _steps(name)
    made = Continuation(steps, prompt, new)
    later = list(made.later())
    assert len(later) == new - 1
    profile = _profile(name, 0.25)
    for threads in (1, 2):
        found = predict_generation(steps, profile, prompt, new, threads)
        begin = _expected(steps, profile, made.prompt, threads) + 0.25 / threads
        assert found.first_token_seconds == pytest.approx(begin)
        assert found.later_seconds == pytest.approx(_expected(steps, profile, chain(*later), threads))
        assert found.last_token_seconds == (1 / threads if new > 1 else 0)


def test_steps_take_the_form_that_holds_their_context():
    seconds = {"step_1_0": 2.0, "step_1_2": 4.0, "step_1_8": 8.0, "step_1_tiles_2": 100.0, "step_1_tiles_3": 130.0}
    profile = _profile("llama", 0.5, **seconds)
    for prompt, expected in ((BLOCK - 2, 2), (BLOCK, 4), (5 * BLOCK, 8), (20 * BLOCK, 1), (BEYOND * BLOCK, 100)):
        found = predict_generation(_steps("llama"), profile, prompt, 2, 1)
        assert found.last_token_seconds == expected
    assert (
        predict_generation(_steps("llama"), profile, (6 * BEYOND + 2) * BLOCK, 2, 1).last_token_seconds == 100 + 5 * 30
    )


def test_steps_in_place_take_longer_with_every_block_of_keys():
    seconds = {"step_1_0": 2.0, "step_1_2": 4.0, "step_1_4": 8.0, "step_1_16": 9.0, "step_1_36": 25.0}
    profile = replace(_profile("llama", 0.5, **seconds), backend="onnxruntime")
    for blocks, expected in ((0, 2), (1, 4), (2, 4 + 4 / 2), (20, 25 + 3 * 16 / 8), (CAPACITIES[-1], 25)):
        found = predict_generation(_steps("llama"), profile, blocks * BLOCK + 3, 2, 1)
        assert found.last_token_seconds == expected  # behind the widest array there is no room in place
        prompt = predict_generation(_steps("llama"), replace(profile, backend="openvino"), blocks * BLOCK + 3, 2, 1)
        assert prompt.last_token_seconds in seconds.values()


def test_what_can_not_be_is_refused():
    with pytest.raises(InputError, match=r"(?s)has no time of step_head.*--generation"):
        predict_generation(_steps("llama"), profile_of(bundle("llama").program), 7, 3, 1)
    with pytest.raises(InputError, match="has an encoder"):
        predict_generation(_steps("t5"), profile_of(bundle("t5").program), 20, 3, 1)
