"""The time of a continuation is that of its steps, each once; what a profile lacks, and what has none, is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.runtime.generation.decoders import BLOCK, bundle
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile, EngineTimes
from twoheads.graphs.prediction.generation import HEAD, predict_generation, step_forms
from twoheads.graphs.variants.step_calls import Continuation
from twoheads.graphs.variants.steps import Steps

NAMES = ("llama", "gemma", "qwen", "mamba")


def _steps(name: str) -> Steps:
    return bundle(name).generation.steps


def _profile(name: str, head: float, **seconds: float) -> DeviceProfile:
    """A second for every form but those named."""
    times = {HEAD: head} | {form.name: seconds.get(form.name, 1.0) for form in step_forms(_steps(name))}
    engines = tuple(EngineTimes(form, "", 1.0, {"1": spent, "2": spent / 2}) for form, spent in times.items())
    return replace(profile_of(bundle(name).program), engines=engines)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (3, 40), (70, 60), (31 * BLOCK + 5, 40)])
def test_every_step_is_counted_once(name, prompt, new):
    steps = _steps(name)
    made = Continuation(steps, prompt, new)
    later = list(made.later())
    assert len(later) == new - 1
    found = predict_generation(steps, _profile(name, 0.25), prompt, new, 1)
    assert found.first_token_seconds == pytest.approx(len(made.prompt) + 0.25)
    assert found.later_seconds == pytest.approx(sum(map(len, later)))
    assert found.last_token_seconds == (1 if new > 1 else 0)
    half = predict_generation(steps, _profile(name, 0.25), prompt, new, 2)
    assert half.first_token_seconds == pytest.approx(found.first_token_seconds / 2)


def test_steps_take_the_form_that_holds_their_context():
    seconds = {"step_1_0": 2.0, "step_1_2": 4.0, "step_1_8": 8.0, "step_1_tiles_2": 100.0, "step_1_tiles_3": 130.0}
    profile = _profile("llama", 0.5, **seconds)
    for prompt, expected in ((BLOCK - 2, 2), (BLOCK, 4), (5 * BLOCK, 8), (20 * BLOCK, 1), (33 * BLOCK, 100)):
        found = predict_generation(_steps("llama"), profile, prompt, 2, 1)
        assert found.last_token_seconds == expected
    assert predict_generation(_steps("llama"), profile, 200 * BLOCK, 2, 1).last_token_seconds == 100 + 5 * 30


def test_what_can_not_be_is_refused():
    with pytest.raises(InputError, match=r"(?s)has no time of step_head.*--generation"):
        predict_generation(_steps("llama"), profile_of(bundle("llama").program), 20, 3, 1)
    with pytest.raises(InputError, match="has an encoder"):
        predict_generation(_steps("t5"), profile_of(bundle("t5").program), 20, 3, 1)
