"""Closed formulas against counted segments: two derivations of one number."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings

from tests.graphs.sample_masks import Sizes, masks, sizes
from twoheads.graphs.costs.call_formulas import attention_formula, symbols
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.masks.tiles import row_segments

CLOSED = [
    "full",
    "causal",
    "window({w}, 0)",
    "causal & window({w}, -1)",
    "causal & window({w}, {s})",
    "window({w}, {s})",
    "window({w}, -1)",
    "window(-1, {w})",
    "window(0, -1)",
    "causal & (window({w}, 0) | sinks({s}))",
    "(window({w}, 0) | sinks({s})) & causal & full",
    "(causal & window({w}, 0)) | (causal & sinks({s}))",
    "window({w}, 0) | sinks({s})",
    "window({w}, 9) | sinks({s})",
    "causal | sinks({s})",
    "sinks({s})",
    "chunk(24)",
    "causal & chunk(24)",
    "causal & chunk(24) & window({w}, -1)",
    "window({w}, {s}) | window(3, 17)",
    "chunk(24) & chunk(48)",
]
ROW_SUMS = ["chunk({s})", "causal & chunk({s})", "chunk({s}) & window({w}, 2)"]
COUNTED = [
    "causal & sinks({s})",
    "chunk({s}) & chunk(5)",
    "causal & chunk({s}) | sinks(2)",
    "sinks({s}) & window(0, -1)",
    "window({w}, 0) | (sinks({s}) & window(-1, 9))",
]

LENGTHS = (1, 3, 4, 5, 16, 23, 24, 25, 32, 49)
GRID = ((4, 4), (4, 8), (4, 12), (8, 8), (8, 24))


def _counted(mask: Mask, of: Sizes) -> int:
    rows = (row_segments(mask, block, **of.keywords()) for block in range(of.blocks))
    return sum(segment.tiles for row in rows for segment in row)


@pytest.mark.parametrize("template", [*CLOSED, *ROW_SUMS, *COUNTED])
def test_formula_equals_the_counted_tiles(template: str) -> None:
    texts = {template.format(w=w, s=s) for w, s in product((0, 1, 3, 4, 5, 8, 17, 60), (1, 4, 7, 8, 9, 50))}
    for text, length, (block_size, key_tile) in product(sorted(texts), LENGTHS, GRID):
        mask, of = parse_mask(text), Sizes(block_size, key_tile, length)
        formula = attention_formula(mask, **of.keywords())
        assert formula.calls == _counted(mask, of), (text, of, formula)
        assert formula.text.endswith(f"= {formula.calls}")


@settings(max_examples=300, deadline=None)
@given(masks, sizes)
def test_formula_of_any_mask_equals_the_counted_tiles(mask: Mask, of: Sizes) -> None:
    assert attention_formula(mask, **of.keywords()).calls == _counted(mask, of)


@pytest.mark.parametrize("template", CLOSED)
def test_structured_masks_are_solved_not_summed(template: str) -> None:
    mask = parse_mask(template.format(w=17, s=9))
    assert "sum" not in attention_formula(mask, block_size=8, key_tile=24, length=10**12).text


@pytest.mark.parametrize("template", COUNTED)
def test_other_masks_say_that_they_are_counted(template: str) -> None:
    formula = attention_formula(parse_mask(template.format(w=17, s=9)), block_size=8, key_tile=24, length=100)
    assert formula.text.startswith("sum over n = 13 rows of their tiles with a visible key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", "n*T = 1024"),
        ("causal", "n + F(n) = 528"),
        ("causal & window(511, 0)", "n + F(n) - F(n - 2) = 93"),
        ("window(256, 256)", "n + F(n) - F(1) + 1*(T - 1) - F(n - 1) = 94"),
        ("causal & (window(511, 0) | sinks(4))", "n + F(n) - F(n - 2) + F(1) + 1*29 = 122"),
        ("causal & chunk(2048)", "4*(8 + F(8)) = 144"),
    ],
)
def test_texts_carry_constants_and_result(text: str, expected: str) -> None:
    assert attention_formula(parse_mask(text), block_size=256, key_tile=256, length=8192).text == expected


def test_the_paper_s_window_bound_is_linear_and_the_full_one_quadratic() -> None:
    def calls(text: str, length: int) -> int:
        return attention_formula(parse_mask(text), block_size=256, key_tile=256, length=length).calls

    assert calls("causal & window(511, 0)", 1 << 21) - calls("causal & window(511, 0)", 1 << 20) == 3 * (1 << 12)
    assert calls("full", 1 << 21) == 4 * calls("full", 1 << 20)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("window(511, 0)", "causal & window(511, -1)"),
        ("window(511, 0)", "causal & window(511, 300)"),
        ("window(100, 0) & window(511, 0)", "causal & window(100, 0)"),
        ("causal & (window(511, 0) | sinks(4))", "(causal & window(511, 0)) | (sinks(4) & causal)"),
        ("causal & (window(511, 0) | sinks(4))", "window(511, 0) | (sinks(4) & causal) | (sinks(2) & window(30, 0))"),
        ("causal", "causal | (causal & sinks(4)) | window(30, 0)"),
        ("full", "window(-1, -1)"),
        ("window(-1, 5)", "causal | window(0, 5)"),
        ("chunk(512)", "chunk(512) & chunk(1024)"),
    ],
)
def test_equivalent_spellings_have_one_formula(one: str, other: str) -> None:
    first, second = (
        attention_formula(parse_mask(text), block_size=64, key_tile=128, length=5000) for text in (one, other)
    )
    assert first == second


def test_legend() -> None:
    assert symbols(block_size=256, key_tile=512, length=1000) == (
        "n = ceil(1000 / 256) = 4 blocks, T = ceil(1000 / 512) = 2 key tiles, "
        "F(m) = sum of floor(a / 2) over 0 <= a < m"
    )
