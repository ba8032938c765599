"""The schedule of small programs, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_masks import masks
from tests.graphs.sample_programs import classifier, decoder, encoder, hybrid, value
from twoheads.graphs.costs import attention_costs
from twoheads.graphs.costs.stage_costs import StageCosts, StagePlan
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.masks.expressions import Causal, Mask, parse_mask
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import LONG_ROW, quantised_shapes
from twoheads.graphs.program.lengths import check_limit
from twoheads.graphs.program.program import (
    AttentionStage,
    Program,
    RelativeBias,
    ScanEngine,
    SequenceStage,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.schedule.schedule import BESIDE_BYTES, ENGINE_BYTES, PROCESS_BYTES, Schedule, make_schedule
from twoheads.graphs.schedule.theorems import SCAN, program_claim, stage_claims

if TYPE_CHECKING:
    from typing import Any

THREE = decoder(Causal(), Causal(), Causal())
H, Q, KV, A, HIDDEN, IDS = 128, 128, 64, 128, 128, 16
"""Bytes of one token of each value of the sample decoder (both inputs together for IDS)."""


def _plan(schedule: Schedule, name: str) -> StagePlan:
    return next(stage for stage in schedule.stages if stage.name == name)


def _segments(schedule: Schedule) -> int:
    stages = [stage for stage in schedule.program.body if isinstance(stage, AttentionStage)]
    return sum(len(row) for stage in stages for _, row in schedule.rows(stage))


@pytest.mark.parametrize(
    ("output", "positions", "head_calls"),
    [("hidden", None, 0), ("last", None, 1), ("logits", None, 3), ("logits", 16, 1), ("logits", 17, 2), (None, 40, 3)],
)
def test_calls_by_hand(output: str | None, positions: int | None, head_calls: int) -> None:
    schedule = make_schedule(THREE, 40, output=output, positions=positions)
    assert schedule.blocks == 3
    assert schedule.engine_calls == schedule.formula_calls == 4 * 3 + 3 * (1 + 2 + 3) + head_calls
    assert [stage.name for stage in schedule.stages][-1] == ("lm_head" if head_calls else "norm")
    wanted = {None: 40, "logits": positions or 40, "last": 1, "hidden": 0}[output]
    assert schedule.positions == wanted


def test_flops_by_hand() -> None:
    attention = 2 * 4 * 16 * 16 * (8 + 8)
    expected = 3 * (1000 + 2 * 2000 + 300) + 18 * attention
    assert make_schedule(THREE, 40, output="hidden").flops == expected
    assert make_schedule(THREE, 40, output="last").flops == expected + 6400


def test_bytes_moved_by_hand() -> None:
    schedule = make_schedule(THREE, 40)
    block = 16
    first = block * (IDS + H + Q + 2 * KV) + (100 * 32 + 32 * 64) * 4
    assert _plan(schedule, "layers.0.in").bytes_moved == 3 * first
    call, mask, previous = block * (Q + 2 * KV + A + 4 * 4), block * block * 4, block * (A + 4 * 4)
    assert _plan(schedule, "layers.1.attention").bytes_moved == 6 * call + 3 * mask + 3 * previous
    assert schedule.bytes_moved == sum(stage.bytes_moved for stage in schedule.stages)


def test_learned_sinks_merge_in_every_call() -> None:
    plain = _plan(make_schedule(decoder(), 40), "layers.0.attention")
    sunk = _plan(make_schedule(decoder(sinks=True), 40), "layers.0.attention")
    assert sunk.calls == plain.calls
    assert sunk.bytes_moved - plain.bytes_moved == 3 * 16 * (A + 4 * 4)


def test_a_bias_masks_every_tile() -> None:
    biased = encoder()
    plain = replace(
        biased, body=tuple(replace(s, bias=None) if isinstance(s, AttentionStage) else s for s in biased.body)
    )
    costs = [_plan(make_schedule(program, 64), "layers.0.attention") for program in (plain, biased)]
    assert [plan.calls for plan in costs] == [16, 16]
    assert costs[1].bytes_moved - costs[0].bytes_moved == 16 * (16 * 16 * 4)


def test_memory_by_hand() -> None:
    memory = make_schedule(THREE, 40, output="hidden", workers=3).memory
    # The peak: the second layer's input is still there while its queries, keys and values are made.
    assert memory.values == 48 * (H + A + H + Q + 2 * KV)
    assert memory.weights == 4 * (100 * 32 + 3 * 32 * 64 + 2 * 32 * 32 + 32)
    assert memory.workspace == 3 * 2 * 16 * (H + A + H + Q + 2 * KV)
    # Seven stages' engines; the largest weight twice while its engine opens.
    assert memory.process == PROCESS_BYTES + BESIDE_BYTES + 7 * ENGINE_BYTES + 4 * 100 * 32
    assert make_schedule(THREE, 40, output="hidden", workers=3).peak_bytes == memory.total


def test_of_a_large_table_the_pages_around_as_many_rows_as_tokens_count() -> None:
    rows, around = 100_000, 65_536
    first, *engines = THREE.engines
    assert isinstance(first, TokenwiseEngine)
    table, *others = first.weights
    large = replace(first, weights=(replace(table, shape=(rows, *table.shape[1:])), *others))
    inputs = tuple(
        replace(entry, limit=rows if entry.limit == table.shape[0] else entry.limit) for entry in THREE.inputs
    )
    program = replace(THREE, engines=(large, *engines), inputs=inputs)
    small, found = (make_schedule(which, 40, output="hidden").memory.weights for which in (THREE, program))
    assert found - small == 40 * (around + 128) - table.nbytes
    whole = make_schedule(program, 40, output="logits").memory.weights
    assert whole - found == make_schedule(THREE, 40, output="logits").memory.weights - small, "the head packs its own"
    copied = StageCosts(program, {"n": 40}, 0).weights(program.body, mapped=False)
    assert sum(copied.values()) - small == (rows - table.shape[0]) * 128, "a device holds all of it"


@pytest.mark.parametrize(("inner", "beside"), [(LONG_ROW, 64), (2 * LONG_ROW, 3 * 64 + 2 * LONG_ROW)])
def test_products_of_4_bits_have_arrays_beside_what_they_give(inner: int, beside: int) -> None:
    """The result without offsets; of long rows pieces of what is read, and partial results."""
    first, *engines = THREE.engines
    assert isinstance(first, TokenwiseEngine)
    table, weight, *others = first.weights
    offsets = Port(f"{weight.name}:offsets", "float32", quantised_shapes(64, inner, 4)[-1])
    program = replace(THREE, engines=(replace(first, weights=(table, offsets, *others)), *engines))
    small, found = (make_schedule(which, 40, output="hidden").memory for which in (THREE, program))
    assert found.weights - small.weights == offsets.nbytes - weight.nbytes
    own = 2 * 16 * (IDS + H + Q + 2 * KV) + 4 * 16 * beside
    assert found.workspace == max(small.workspace, 2 * own)


def test_keys_and_values_are_padded_to_whole_tiles_and_others_to_blocks() -> None:
    schedule = make_schedule(decoder(Causal(), Causal(), key_tile=32), 40, output="hidden")
    assert _plan(schedule, "layers.0.in").outputs_bytes == 48 * (H + Q) + 64 * 2 * KV
    assert schedule.memory.values == 48 * (H + A + H + Q) + 64 * 2 * KV


def test_attention_workspace_counts_where_it_is_the_largest() -> None:
    wide = decoder(key_tile=160)
    assert make_schedule(wide, 40, workers=2).memory.workspace == 2 * 3 * 4 * 16 * 160 * 4


def test_the_last_position_needs_no_more_values_than_hidden_states() -> None:
    hidden, last = (make_schedule(THREE, 400, output=output).memory for output in ("hidden", "last"))
    assert last.values == hidden.values
    assert last.weights == hidden.weights + 4 * 100 * 32, "the head packs the table of embeddings"


def test_the_heads_workspace_counts_for_as_many_workers_as_it_has_blocks() -> None:
    head = next(engine for engine in THREE.engines if engine.name == "head")
    assert isinstance(head, TokenwiseEngine)
    large = replace(head, outputs=(replace(head.outputs[0], shape=(1, 16, 100_000)),))
    wide = replace(THREE, engines=tuple(large if engine is head else engine for engine in THREE.engines))
    one, two, three = (
        make_schedule(wide, 40, output=output, positions=positions, workers=3).memory.workspace
        for output, positions in (("last", None), ("logits", 17), ("logits", None))
    )
    assert (two, three) == (2 * one, 3 * one)
    assert one >= 2 * 16 * 100_000 * 4


def test_release_after_by_hand() -> None:
    assert make_schedule(THREE, 40).release_after == {
        "layers.0.in": ("input_ids", "position_ids"),
        "layers.0.attention": ("q0", "k0", "v0"),
        "layers.1.in": ("h0", "a0"),
        "layers.1.attention": ("q1", "k1", "v1"),
        "layers.2.in": ("h1", "a1"),
        "layers.2.attention": ("q2", "k2", "v2"),
        "norm": ("h2", "a2"),
    }


def test_only_one_layer_s_keys_are_alive_at_a_time() -> None:
    schedule = make_schedule(THREE, 40)
    alive: set[str] = {entry.value.name for entry in THREE.inputs}
    for stage in THREE.body:
        reads = stage.inputs
        assert alive.issuperset(reads)
        alive |= {v.name for v in stage.outputs}
        assert len(alive & {"k0", "k1", "k2"}) <= 1
        alive -= set(schedule.release_after[stage.name])
    assert alive == {"hidden"}


def _with_side_branch() -> Program:
    side = TokenwiseStage("side", "last", ("h0", "a0"), (value("unused", 1, "n", 32),), ("norm.weight",))
    return replace(THREE, body=(*THREE.body[:2], side, *THREE.body[2:]))


def test_stages_that_the_output_does_not_need_are_left_out() -> None:
    schedule = make_schedule(_with_side_branch(), 40)
    assert "side" not in [stage.name for stage in schedule.stages]
    assert "side" not in schedule.release_after
    assert schedule.engine_calls == make_schedule(THREE, 40).engine_calls


def test_an_output_that_nobody_reads_dies_at_once() -> None:
    first = THREE.body[0]
    assert isinstance(first, TokenwiseStage)
    wider = replace(first, outputs=(*first.outputs, value("extra", 1, "n", 8)))
    program = replace(THREE, body=(wider, *THREE.body[1:]))
    assert make_schedule(program, 40).release_after["layers.0.in"] == ("input_ids", "position_ids", "extra")


def test_formula_text() -> None:
    program = decoder(parse_mask("causal & window(31, 0)"), Causal(), Causal())
    assert make_schedule(program, 100, output="last").formula == (
        "4 x tokenwise [n = 7] + 1 x attention [n + F(n) - F(n - 2) = 18] + 2 x attention [n + F(n) = 28] + "
        "1 x tokenwise [h = 1] = 103, with n = ceil(100 / 16) = 7 blocks, T = ceil(100 / 16) = 7 key tiles, "
        "F(m) = m*(m - 1)/2"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(masks, min_size=1, max_size=3), st.integers(1, 150), st.sampled_from([16, 32, 48]))
def test_counted_calls_equal_the_formula_for_any_masks(layers: list[Mask], length: int, key_tile: int) -> None:
    schedule = make_schedule(decoder(*layers, key_tile=key_tile), length)
    assert schedule.engine_calls == schedule.formula_calls
    stages = [stage for stage in schedule.program.body if isinstance(stage, AttentionStage)]
    for stage in stages:
        rows = list(schedule.rows(stage))
        assert [block for block, _ in rows] == list(range(schedule.blocks))
        assert sum(s.tiles for _, row in rows for s in row) == _plan(schedule, stage.name).calls


@pytest.mark.parametrize("text", ["causal", "full", "causal & window(511, 0)", "causal & (window(511, 0) | sinks(4))"])
def test_segments_grow_linearly_with_the_length(text: str) -> None:
    program = decoder(parse_mask(text), block_size=256, key_tile=256)
    short, long = (_segments(make_schedule(program, length)) for length in (1 << 17, 1 << 18))
    assert long - short == pytest.approx(short, abs=10)
    assert long < 5 * (1 << 18) / 256


def test_a_windowed_layer_s_calls_grow_linearly_and_a_causal_one_s_do_not() -> None:
    for text, factor in (("causal & window(511, 0)", 2), ("causal", 4)):
        program = decoder(parse_mask(text), block_size=256, key_tile=256)
        calls = [_plan(make_schedule(program, n), "layers.0.attention").calls for n in (1 << 17, 1 << 18)]
        assert calls[1] == pytest.approx(factor * calls[0], rel=0.01)


def test_equal_layers_are_classified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []

    def counting(mask: Mask, block: int, **sizes: Any) -> Any:
        blocks.append(block)
        return row_segments(mask, block, **sizes)

    monkeypatch.setattr(attention_costs, "row_segments", counting)
    length = 1_000_003
    schedule = make_schedule(decoder(*[Causal()] * 30, block_size=256, key_tile=256), length)
    assert schedule.engine_calls == schedule.formula_calls
    assert _segments(schedule) == 30 * (2 * schedule.blocks - 1)
    assert blocks == list(range(schedule.blocks)), "the executor's rows are the planner's"


@pytest.mark.parametrize(
    ("program", "length", "output", "positions", "message"),
    [
        (THREE, 0, None, None, "length: is 0"),
        (THREE, -3, None, None, "length: is -3"),
        (THREE, 5, "embedding", None, "does not give 'embedding'\n  fix: ask for hidden or logits or last"),
        (THREE, 5, "logit", None, "does not give 'logit'"),
        (encoder(), 5, "logits", None, "does not give 'logits'\n  fix: ask for hidden or embedding"),
        (THREE, 5, "logits", 0, "positions: 0 positions are asked for"),
        (encoder(), 65, None, None, 'what the model tiny encoder itself can take: the position table "embeddings.posi'),
    ],
)
def test_impossible_requests_are_refused(
    program: Program, length: int, output: str | None, positions: int | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_schedule(program, length, output=output, positions=positions)
    assert message in str(caught.value)


def test_the_longest_input_of_a_limited_model_is_taken() -> None:
    assert make_schedule(encoder(), 64).output == "embedding"


@pytest.mark.parametrize(("stage", "engine"), [(0, "attention"), (0, "missing"), (1, "first")])
def test_a_stage_with_the_wrong_engine_is_our_bug(stage: int, engine: str) -> None:
    body = list(THREE.body)
    changed = body[stage]
    assert not isinstance(changed, SequenceStage)
    body[stage] = replace(changed, engine=engine)
    with pytest.raises(InternalError, match=f"has no .* engine '{engine}'"):
        make_schedule(replace(THREE, body=tuple(body)), 5)


def test_the_bias_of_a_slope_counts_like_a_table() -> None:
    program = encoder()
    body = tuple(
        replace(s, bias=RelativeBias(None, "slope")) if isinstance(s, AttentionStage) else s for s in program.body
    )
    assert make_schedule(replace(program, body=body), 33).bytes_moved == make_schedule(program, 33).bytes_moved


def test_each_axis_has_a_limit_of_its_own() -> None:
    program = classifier()  # its encoder's axis m, which no input has, may have 1024 rows
    assert [limit.axis for limit in program.limits] == ["m"]
    check_limit(program, {"n": 5000, "m": 1024})
    with pytest.raises(InputError, match=r"length of m: 1025 tokens .* its table positions of 1024 rows"):
        check_limit(program, {"n": 5, "m": 1025})


def test_a_scan_is_a_chain_of_one_call_a_block() -> None:
    program = hybrid()
    schedule = make_schedule(program, 53, output="hidden", workers=2)
    scans = [plan for plan in schedule.stages if plan.kind == "scan"]
    assert [(plan.calls, plan.formula.calls) for plan in scans] == [(4, 4), (4, 4)]
    others = len(schedule.stages) - 2
    assert schedule.rounds == others + 2 * 4
    engine = program.engine("conv")
    assert scans[0].flops == 4 * engine.call_flops("block") == 4 * 2 * 16 * 32 * 3
    assert {claim.theorem for claim in stage_claims(schedule) if "conv" in claim.stage} == {SCAN}
    assert program_claim(schedule).paper_calls is None


def test_the_state_of_a_scan_is_memory_of_one_worker() -> None:
    sizes = (("groups", 1), ("heads", 1), ("key_dim", 3000), ("value_dim", 3000))
    base = hybrid()
    wide = ScanEngine("conv", "decayed_attention", sizes, 16, 16)
    engines = tuple(wide if engine.name == "conv" else engine for engine in base.engines)
    schedules = [make_schedule(replace(base, engines=engines), 100, workers=workers) for workers in (1, 4)]
    assert schedules[0].memory.workspace == schedules[1].memory.workspace > 2 * 4 * 3000 * 3000
