"""The theory beside the counts: the paper's calls against its constructions, floors against enumeration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import paper_oracle
from tests.graphs.sample_masks import Sizes, masks, sizes
from tests.graphs.sample_programs import decoder
from twoheads.graphs.costs.call_formulas import attention_formula, count_visible_pairs
from twoheads.graphs.masks.expressions import Causal, Mask, Window, parse_mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import floor_formula, paper_formula, program_claim, stage_claims, theorem_of
from twoheads.runtime.stages.attention.merge import attention

LENGTHS = (1, 7, 8, 9, 31, 64)


def _paper(text: str, block_size: int, length: int) -> int:
    formula = paper_formula(parse_mask(text), block_size=block_size, length=length)
    assert formula is not None
    assert formula.text.endswith(f"= {formula.calls}")
    return formula.calls


def _data(length: int) -> list[np.ndarray]:
    return list(np.random.default_rng(length).standard_normal((3, length, 5)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mask", ["full", "causal", "window(2, 0)", "window(1, 2)", "window(6, 0)"])
def test_the_paper_s_construction_is_right_and_takes_the_calls_we_say(mask: str, length: int) -> None:
    q, k, v = _data(length)
    oracle = paper_oracle.Oracle(8, causal=mask != "full")
    match parse_mask(mask):
        case Window(left, right):
            got = paper_oracle.window(oracle, q, k, v, left, right)
        case Causal():
            got = paper_oracle.causal(oracle, q, k, v)
        case _:
            got = paper_oracle.full(oracle, q, k, v)
    wanted, _ = attention(q[None], k[None], v[None], mask=mask, scale=1.0)
    np.testing.assert_allclose(got, wanted[0], rtol=0, atol=1e-9)
    assert oracle.calls == _paper(mask, 8, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_paper_s_construction_with_sinks(length: int) -> None:
    q, k, v = _data(length)
    oracle = paper_oracle.Oracle(12, causal=True)
    got = paper_oracle.window_and_sinks(oracle, q, k, v, r=4, s=3)
    mask = "causal & (window(3, 0) | sinks(3))"
    wanted, _ = attention(q[None], k[None], v[None], mask=mask, scale=1.0)
    np.testing.assert_allclose(got, wanted[0], rtol=0, atol=1e-9)
    assert oracle.calls == _paper(mask, 12, length)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", "2*n^2 = 2048"),
        ("causal", "2*n + 4*n*(n - 1)/2 = 2048"),
        ("window(127, 0)", "4*ceil(N / (M - 128)) = 256"),
        ("causal & window(127, -1)", "4*ceil(N / (M - 128)) = 256"),
        ("causal & (window(127, 0) | sinks(4))", "4*ceil(N / (M - 128 - 4)) = 268"),
        ("causal & window(511, 0)", "at least 2*93 + 2*31 = 248"),
        ("causal & (window(511, 0) | sinks(4))", "at least 2*93 + 2*31 + 2*ceil(N / (M - 4)) = 314"),
        ("causal & chunk(2048)", "4*(2*n + 4*n*(n - 1)/2) = 512"),
    ],
)
def test_texts_carry_constants_and_result(text: str, expected: str) -> None:
    formula = paper_formula(parse_mask(text), block_size=256, length=8192)
    assert formula is not None
    assert formula.text == expected


@pytest.mark.parametrize(
    "text", ["causal | sinks(4)", "sinks(4)", "window(-1, 3)", "window(3, -1)", "window(9, 0) | sinks(300)"]
)
def test_masks_that_the_paper_does_not_treat(text: str) -> None:
    assert paper_formula(parse_mask(text), block_size=256, length=8192) is None
    assert theorem_of(parse_mask(text)) in ("Lemma 3.1 with a mask", "Theorem 5.1")


@pytest.mark.parametrize(
    ("text", "theorem"),
    [
        ("full", "Theorem 3.4"),
        ("window(-1, -1)", "Theorem 3.4"),
        ("causal", "Theorem 3.5"),
        ("window(-1, 0)", "Theorem 3.5"),
        ("causal & window(9, -1)", "Theorem 5.1"),
        ("causal & (window(9, 0) | sinks(4))", "Theorem 5.1"),
        ("window(64, 64)", "Theorem 5.1"),
        ("chunk(64) & causal", "Theorem 3.5 in each chunk"),
        ("chunk(64)", "Theorem 3.4 in each chunk"),
        ("causal | sinks(7)", "Lemma 3.1 with a mask"),
    ],
)
def test_theorem(text: str, theorem: str) -> None:
    assert theorem_of(parse_mask(text), heads=4) == theorem
    assert theorem_of(parse_mask("full"), heads=1) == "Lemma 3.1"


@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("full", 1 / 2),
        ("causal", 1 / 2),
        ("window({r}, 0)", 1 / 2),
        ("causal & (window({r}, 0) | sinks(4))", 3 / 4),
        ("window({r}, {r})", 3 / 4),
    ],
)
def test_ours_takes_at_most_this_share_of_the_paper_s_calls(text: str, share: float, block_size: int) -> None:
    for r in (3, block_size // 2 - 8, block_size, 3 * block_size - 1, 5 * block_size + 3):
        mask = parse_mask(text.format(r=r))
        for length in (block_size * 8, block_size * 64 + 1, 100_000):
            ours = attention_formula(mask, block_size=block_size, key_tile=block_size, length=length).calls
            paper = paper_formula(mask, block_size=block_size, length=length)
            assert paper is not None
            assert ours <= share * paper.calls, (str(mask), length, ours, paper)


@settings(max_examples=200, deadline=None)
@given(masks, sizes)
def test_visible_pairs_and_floor_of_any_mask(mask: Mask, of: Sizes) -> None:
    at = np.arange(of.length)
    pairs = int(np.broadcast_to(mask.dense(at[:, None], at[None, :]), (of.length, of.length)).sum())
    assert count_visible_pairs(mask, of.length) == pairs
    floor = floor_formula(mask, **of.keywords()).calls
    assert floor == max(-(-pairs // (of.block_size * of.key_tile)), -(-of.length // of.block_size))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["full", "causal", "window(9, 0)", "window(5, 5)", "causal & (window(9, 0) | sinks(3))"]), sizes)
def test_no_mask_is_done_below_its_floor(text: str, of: Sizes) -> None:
    mask = parse_mask(text)
    assert floor_formula(mask, **of.keywords()).calls <= attention_formula(mask, **of.keywords()).calls


def test_claims_of_a_program_add_up() -> None:
    program = decoder(parse_mask("causal"), parse_mask("causal & window(5, 0)"))
    for length in (1, 16, 17, 1000):
        schedule = make_schedule(program, length)
        claims, total = stage_claims(schedule), program_claim(schedule)
        assert [claim.stage for claim in claims] == [stage.name for stage in schedule.stages]
        assert total.calls == schedule.engine_calls == sum(claim.formula.calls for claim in claims)
        assert total.paper_calls == sum(claim.paper.calls for claim in claims if claim.paper)
        assert total.floor_calls <= total.calls
        assert total.theorem == "Theorem 3.5, Theorem 5.1"
        assert total.rounds == len(schedule.stages) == 6, "O(L), whatever the length"
    attention = program.body[1]
    assert isinstance(attention, AttentionStage)
    sampled = replace(
        program, body=(program.body[0], replace(attention, average=Average(1, None, 0, 0)), *program.body[2:])
    )
    (claim, *_) = [claim for claim in stage_claims(make_schedule(sampled, 1000)) if claim.stage == attention.name]
    assert claim.theorem == "Theorem 4.1"
    assert claim.paper is not None
    assert (claim.paper.calls, claim.floor.calls) == (63, 63)
    uncovered = program_claim(make_schedule(decoder(parse_mask("causal | sinks(4)")), 100))
    assert uncovered.paper_calls is None
