"""Which programs become one call a block, what it calls and keeps, and what is refused with which reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.graphs.sample_profiles import SLOWER, profile_of
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.expressions import Causal, Window, parse_mask
from twoheads.graphs.prediction.device_profile import ALONE, EngineTimes
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.fused import FusedStage, PortRead, TileWindow
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import program_claim
from twoheads.graphs.variants.choose import fused_programs
from twoheads.graphs.variants.model_steps import MODEL_STEP, model_obstacle, model_steps

SHORT, LONG = Causal() & Window(12, 0), parse_mask("causal & (window(20, 0) | sinks(3))")

GOLDEN = """\
program tiny-decoder block_size=16 key_tile=16
trained_length 2048
input %input_ids: int64[1, n] = argument < 100
input %position_ids: int64[1, n] = positions
engine @model_step: (input_0: int64[1, 16], input_1: int64[1, 16], attention.mask_0: float32[1, 16, 32], \
attention.mask_1: float32[1, 16, 64], kept_0.1: float32[1, 2, 16, 8], kept_1.1: float32[1, 2, 16, 8], \
first_2: float32[1, 2, 16, 8], kept_2.2: float32[1, 2, 16, 8], kept_2.1: float32[1, 2, 16, 8], \
first_3: float32[1, 2, 16, 8], kept_3.2: float32[1, 2, 16, 8], kept_3.1: float32[1, 2, 16, 8]) -> \
(output_0: float32[1, 16, 32], kept_0: float32[1, 2, 16, 8], kept_1: float32[1, 2, 16, 8], \
kept_2: float32[1, 2, 16, 8], kept_3: float32[1, 2, 16, 8]) flops=FLOPS
    weights "weights/embed": float32[100, 32], "weights/layers.0.qkv": float32[32, 64], \
"weights/layers.1.mlp": float32[32, 32], "weights/layers.1.qkv": float32[32, 64], "weights/norm.weight": float32[32]
engine @head: (hidden: float32[1, 16, 32]) -> (logits: float32[1, 16, 100]) flops=6400
    weights w0: float32[100, 32]
stage model_step: %hidden: float32[1, n, 32] = @model_step(%input_ids, %position_ids)
    weights embed, layers.0.qkv, layers.1.mlp, layers.1.qkv, norm.weight
head lm_head: %logits: float32[1, n, 100] = @head(%hidden)
    weights embed
output hidden = %hidden
output logits = %logits
"""


def stage_of(program: Program) -> FusedStage:
    steps = model_steps(program)
    assert steps is not None
    stage = steps.body[-1]
    assert isinstance(stage, FusedStage)
    return stage


def test_the_program_is_one_stage_of_one_engine() -> None:
    program = decoder(SHORT, LONG)
    steps = model_steps(program)
    assert steps is not None
    regions = 1000 + 2000 + 300
    scores = sum(4 * 16 * tiles * 16 * 8 * 2 * 2 for tiles in (2, 4))
    assert print_program(steps) == GOLDEN.replace("FLOPS", str(regions + scores))
    assert model_steps(program) is steps
    assert len(stage_of(program).operands) == len(steps.engines[0].inputs)  # type: ignore[union-attr]


def test_calls_and_rounds_are_blocks_and_what_is_kept_does_not_grow() -> None:
    steps = model_steps(decoder(SHORT, LONG))
    assert steps is not None
    kept = []
    for length in (1, 16, 17, 100, 16_000):
        schedule = make_schedule(steps, length, output="hidden")
        blocks = -(-length // 16)
        assert schedule.engine_calls == schedule.formula_calls == schedule.rounds == blocks
        claim = program_claim(schedule)
        assert (claim.theorem, claim.floor_calls) == ("Theorem 5.1", blocks)
        assert claim.paper_calls is not None
        assert claim.paper_calls > claim.calls
        values = blocks * 16 * (32 * 4 + 8 + 8)  # hidden states, token numbers and positions
        kept.append(schedule.memory.values - values)
    blocks_held, masks = 2 * (2 + 4) + 1, (1 + 1) * 2 + (2 + 2) * 4
    assert kept == [blocks_held * 2 * 16 * 8 * 4 + masks * 16 * 16 * 4] * 5


def test_which_tiles_a_block_sees() -> None:
    window = TileWindow(LONG, 2, first=True)
    assert [window.numbers(block, 10) for block in (0, 1, 2, 3, 9)] == [
        (None, None, None, 0),
        (None, None, 0, 1),
        (None, 0, 1, 2),
        (0, 1, 2, 3),
        (0, 7, 8, 9),
    ]
    assert [window.like(block) for block in (0, 2, 3, 9)] == [0, 2, 3, 3]
    assert [TileWindow(SHORT, 1).like(block) for block in (0, 1, 9)] == [0, 1, 1]
    assert TileWindow(SHORT, 1, after=1).numbers(9, 10) == (8, 9, None)
    reads = [PortRead("k", offset) for offset in (None, -2, -1)]
    found = [tuple(read.number(block, 10) for read in reads) for block in (0, 1, 9)]
    assert found == [(None, None, None), (0, None, 0), (0, 7, 8)]


@pytest.mark.parametrize(
    ("mask", "problem", "fix"),
    [
        ("causal", "attends to all earlier tokens", "--lowering tile, or window"),
        ("full", "attends to all tokens", "--attention window"),
        ("causal & chunk(20)", "is no window (causal & chunk(20))", "--lowering tile"),
        ("window(9, 1)", "behind its own (window(9, 1))", "--lowering tile"),
        ("causal & window(49, 0)", "5 blocks at once, more than 4", "--block-size 24 or larger"),
        ("causal & (window(9, 0) | sinks(17))", "17 sink tokens", "--block-size 24"),
    ],
)
def test_layers_that_are_no_causal_windows_are_named(mask: str, problem: str, fix: str) -> None:
    program = decoder(SHORT, parse_mask(mask), SHORT)
    assert model_steps(program) is None
    found = model_obstacle(program)
    assert found is not None
    assert found.where == "layers.1.attention"
    assert problem in found.problem
    assert fix in found.fix


def test_other_programs_are_refused() -> None:
    biased = decoder(SHORT, sinks=True)
    assert model_steps(biased) is None
    assert "learned sinks" in str(model_obstacle(biased))
    assert "bias" in str(model_obstacle(encoder()))
    body = tuple(stage for stage in decoder(SHORT).body if not isinstance(stage, AttentionStage))
    assert "no attention" in str(model_obstacle(replace(decoder(SHORT), body=body)))


def test_every_single_input_takes_it() -> None:
    program = decoder(SHORT)
    fused = fused_programs(program, "model", short=True)
    assert fused.block is None
    assert fused.model is fused.whole is model_steps(program)
    assert all(fused.chosen({"n": length}) is fused.model for length in (1, 16, 17, 1000))


def test_the_time_is_that_of_one_call_after_the_other_with_all_threads_in_each() -> None:
    program = decoder(SHORT)
    steps = model_steps(program)
    assert steps is not None
    profile = profile_of(program)
    alone = tuple(EngineTimes(name, ALONE, 2.0, {"1": 100.0, "2": 60.0}) for name in (MODEL_STEP, "head"))
    known = replace(profile, engines=(*profile.engines, *alone))
    schedule = make_schedule(steps, 33, output="hidden")
    assert [predict_run(schedule, known, threads).seconds for threads in (1, 2)] == pytest.approx([300.0, 180.0])
    assert SLOWER > 1
    with pytest.raises(InputError, match="model_step"):
        predict_run(schedule, profile, 1)
