"""Which layers become one step a block, and which inputs take the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.masks.expressions import Causal, Window, parse_mask
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import stage_claims
from twoheads.graphs.variants.choose import FusedPrograms
from twoheads.graphs.variants.one_block import one_block
from twoheads.graphs.variants.window_steps import window_steps

WINDOW = Causal() & Window(20, 0)


def steps_of(program: Program) -> list[FusedStage]:
    steps = window_steps(program)
    return [] if steps is None else [stage for stage in steps.body if isinstance(stage, FusedStage)]


def test_a_windowed_layer_becomes_one_stage_of_the_same_work() -> None:
    program = decoder(WINDOW, Causal())
    steps = window_steps(program)
    assert steps is not None
    (step,) = steps_of(program)
    (window,) = step.windows
    assert (window.before, window.after, window.tiles) == (2, 0, 3)
    assert not step.kept
    assert len(steps.body) == len(program.body) - 1
    engine = steps.engine(step.engine)
    assert isinstance(engine, FusedEngine)
    names = [port.name.removeprefix("attention.") for port in engine.inputs]
    assert names[:8] == ["q", "k_0", "k_1", "k_2", "v_0", "v_1", "v_2", "mask"]
    assert engine.inputs[7].shape == (1, 16, 48)
    schedule = make_schedule(steps, 100, output="hidden")
    plan = next(plan for plan in schedule.stages if plan.kind == "window")
    assert plan.calls == plan.formula.calls == 7
    assert schedule.engine_calls == schedule.formula_calls
    assert window_steps(program) is steps
    claim = next(claim for claim in stage_claims(schedule) if claim.stage == step.name)
    assert claim.theorem.startswith("Theorem 5.1")
    assert claim.floor.calls <= plan.calls


@pytest.mark.parametrize(
    ("mask", "reach"),
    [
        ("causal & window(0, 0)", (0, 0)),
        ("causal & window(16, 0)", (1, 0)),
        ("causal & window(17, 0)", (2, 0)),
        ("window(31, 16)", (2, 1)),
        ("causal & window(48, 0)", (3, 0)),
    ],
)
def test_how_many_tiles_a_window_touches(mask: str, reach: tuple[int, int]) -> None:
    (step,) = steps_of(decoder(parse_mask(mask)))
    (window,) = step.windows
    assert (window.before, window.after) == reach


@pytest.mark.parametrize(
    "mask",
    [
        "causal",
        "full",
        "causal & window(49, 0)",
        "window(31, 32)",
        "causal & (window(20, 0) | sinks(3))",
        "causal & chunk(20)",
    ],
)
def test_other_masks_stay_tiles(mask: str) -> None:
    assert window_steps(decoder(parse_mask(mask))) is None


def _changed(program: Program, **changes: Any) -> Program:
    body = tuple(replace(stage, **changes) if isinstance(stage, AttentionStage) else stage for stage in program.body)
    return replace(program, body=body)


def test_other_attentions_stay_tiles() -> None:
    assert window_steps(decoder(WINDOW, key_tile=32)) is None
    assert window_steps(_changed(decoder(WINDOW), sinks="sinks")) is None
    assert window_steps(encoder()) is None


def test_who_asks_for_steps_gets_them_for_all_but_short_inputs() -> None:
    program = decoder(WINDOW)
    steps, block = window_steps(program), one_block(program)
    assert block is not None
    chosen = FusedPrograms(program, block, steps).chosen
    assert [chosen({"n": length}) is steps for length in (1, 16, 17, 1000)] == [False, False, True, True]
    assert chosen({"n": 16}) is block
    assert FusedPrograms(program, None, None).chosen({"n": 1000}) is program


def test_the_stages_of_a_mixed_decoder_read_what_the_layers_read() -> None:
    steps = window_steps(decoder(WINDOW, Causal(), WINDOW))
    assert steps is not None
    written = [
        f"{stage.name}: {stage.engine}({', '.join(stage.operands)}) -> {', '.join(v.name for v in stage.outputs)}"
        for stage in steps.body
        if isinstance(stage, FusedStage)
    ]
    assert written == [
        "layers.0.attention: window_0(q0, k0, k0, k0, v0, v0, v0, , h0) -> h1, q1, k1, v1",
        "layers.2.attention: window_1(q2, k2, k2, k2, v2, v2, v2, , h2) -> hidden",
    ]


def test_the_time_of_steps_is_predicted() -> None:
    program = decoder(WINDOW)
    steps = window_steps(program)
    assert steps is not None
    profile = replace(profile_of(steps), engines_digest=profile_of(program).engines_digest)
    schedule = make_schedule(steps, 33, output="hidden")
    seconds = [stage.seconds for stage in predict_run(schedule, profile, 1).stages if stage.kind == "window"]
    assert seconds == pytest.approx([3 * 16.0])
