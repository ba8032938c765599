"""Which programs compute a short input in one call, and what that costs by their schedules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.graphs.sample_profiles import SLOWER, profile_of
from tests.graphs.sample_programs import classifier, decoder, encoder
from tests.runtime import axes_models
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Causal, Full, Mask, Window, parse_mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.prediction.device_profile import ALONE, EngineTimes
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import ONE_CALL, program_claim
from twoheads.graphs.variants.one_block import LENGTH, ONE_BLOCK, looks_ahead, one_block


@dataclass(frozen=True)
class Blind(Full):
    """Everything but itself."""

    def dense(self, i: Any, j: Any) -> Any:
        return np.broadcast_to(i != j, np.broadcast_shapes(i.shape, j.shape))


def test_the_body_becomes_one_stage_with_the_same_work_and_weights() -> None:
    program = decoder(Causal(), Causal() & Window(20, 0))
    block = one_block(program)
    assert block is not None
    assert [stage.name for stage in block.body] == [ONE_BLOCK]
    assert block.head == program.head
    assert block.body[0].inputs[-1] == LENGTH
    whole, tiled = (make_schedule(one, 16, output="hidden") for one in (block, program))
    assert (whole.engine_calls, whole.formula_calls, whole.rounds) == (1, 1, 1)
    assert whole.flops == tiled.flops
    assert whole.bytes_moved < tiled.bytes_moved
    assert whole.memory.weights == tiled.memory.weights
    assert program_claim(whole).theorem == ONE_CALL
    assert one_block(program) is block


def test_pooling_and_classifiers_stay_behind_the_block() -> None:
    first, pooler = encoder(), classifier().body[-2:]
    tail = tuple(engine for engine in classifier().engines if engine.name == "pooler")
    program = replace(first, body=(*first.body, *pooler), engines=(*first.engines, *tail), logits="logits", head=())
    block = one_block(program)
    assert block is not None
    assert [stage.name for stage in block.body] == [ONE_BLOCK, "pool", "pooler"]
    schedule = make_schedule(block, 5, output="logits")
    assert [plan.calls for plan in schedule.stages] == [1, 0, 1]


def _with_attention(program: Program, **changes: Any) -> Program:
    body = tuple(replace(stage, **changes) if isinstance(stage, AttentionStage) else stage for stage in program.body)
    return replace(program, body=body)


@pytest.mark.parametrize(
    "program",
    [
        _with_attention(decoder(Causal()), average=Average(samples=2, window=4, sinks=0, seed=0)),
        _with_attention(encoder(), mask=Blind()),
        axes_models.encoder_decoder().program(),
        axes_models.image().program(),
        classifier(),
    ],
    ids=["sampled", "blind to itself", "two axes", "an image", "another axis"],
)
def test_other_programs_have_no_such_engine(program: Program) -> None:
    assert one_block(program) is None


@pytest.mark.parametrize(
    ("mask", "ahead"), [("causal", False), ("causal & window(3, 0)", False), ("window(3, 1)", True), ("full", True)]
)
def test_which_masks_look_ahead(mask: str, ahead: bool) -> None:
    found: Mask = parse_mask(mask)
    assert looks_ahead(found, 16) is ahead


def test_the_time_of_one_call_is_that_with_all_threads_in_its_kernels() -> None:
    program = decoder()
    block = one_block(program)
    assert block is not None
    profile = profile_of(program)
    alone = tuple(EngineTimes(name, ALONE, 2.0, {"1": 100.0, "2": 60.0}) for name in (ONE_BLOCK, "head"))
    known = replace(profile, engines=(*profile.engines, *alone))
    schedule = make_schedule(block, 9, output="hidden")
    assert [predict_run(schedule, known, threads).seconds for threads in (1, 2)] == pytest.approx([100.0, 60.0])
    assert predict_run(schedule, known, 2).open_seconds == pytest.approx(2.0)
    assert SLOWER > 1
    with pytest.raises(InputError, match="one_block"):
        predict_run(schedule, profile, 1)
