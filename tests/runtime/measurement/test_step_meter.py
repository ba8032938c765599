"""Steps of every form are measured, and no form is missing that a continuation takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder
from tests.tiers import with_long
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.generation import HEAD, predict_generation, step_forms
from twoheads.runtime.generation.steps.sequence_calls import SequenceCalls
from twoheads.runtime.measurement import step_meter
from twoheads.runtime.measurement.step_meter import with_step_times


@pytest.mark.parametrize("name", with_long(("llama", "gemma", "qwen", "mamba"), ("llama", "mamba")))
def test_every_form_is_measured(name, monkeypatch):
    made: set[tuple[int, int]] = set()
    step = SequenceCalls.step

    def seen(self, tokens, first, rows):
        made.add((rows, first // BLOCK))
        return step(self, tokens, first, rows)

    monkeypatch.setattr(step_meter, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(SequenceCalls, "step", seen)
    steps, told = bundle(name).generation.steps, list[str]()
    given = replace(profile_of(bundle(name).program), backend="onnxruntime", threads=(1,), engines=())
    profile = with_step_times(given, bundle_folder(name), told.append)
    assert [times.engine for times in profile.engines] == told == [HEAD, *(form.name for form in step_forms(steps))]
    assert made == {(form.call.rows, form.call.blocks) for form in step_forms(steps)}
    for prompt, new in ((1, 1), (5 * BLOCK + 3, 2 * BLOCK), (70 * BLOCK, 3)):
        whole = replace(profile, engines=(*profile_of(steps.program).engines, *profile.engines))
        found = predict_generation(steps, whole, prompt, new, 1)
        assert found.first_token_seconds > 0
        assert (found.later_seconds > 0) == (new > 1)


def test_steps_that_differ_are_refused():
    given = replace(profile_of(bundle("t5").program), backend="onnxruntime", threads=(1,), engines=())
    with pytest.raises(InputError, match="all alike"):
        with_step_times(given, bundle_folder("t5"), lambda _: None)
