"""Masks cut into rectangles and triangles: every visible pair exactly once, and as many calls as the formula says."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from twoheads.graphs.costs.maskless_formulas import ceil_sum, maskless_formula
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.bands import Band, band_of
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.masks.pieces import code_size, code_words, maskless_rows, query_block

TEMPLATES = [
    "causal",
    "full",
    "causal & window({left}, 0)",
    "window({left}, {right})",
    "window({left}, -1)",
    "window(-1, {right})",
    "causal & (window({left}, 0) | sinks({sinks}))",
    "window({left}, {right}) | (sinks({sinks}) & window(-1, {right}))",
]


def _check(text: str, block_size: int, key_tile: int, length: int) -> None:
    mask = parse_mask(text)
    covered, calls = np.zeros((length, length), np.int64), 0
    for row in maskless_rows(mask, block_size, length):
        assert row.size <= block_size
        assert row.calls(key_tile) == len(row.triangles) + len(row.chunks(key_tile))
        calls += row.calls(key_tile)
        stop = min(row.start + row.size, length)
        for triangle in row.triangles:
            seen = triangle.dense(row.size)[: stop - row.start]
            assert seen.any(), "a call that shows nothing to any query of the input"
            a, b = np.nonzero(seen)
            covered[row.start + a, triangle.start + b] += 1
        for start, end in row.full:
            covered[row.start : stop, start:end] += 1
    at = np.arange(length)
    assert np.array_equal(covered, np.broadcast_to(mask.dense(at[:, None], at[None, :]), covered.shape))
    assert calls == maskless_formula(mask, block_size=block_size, key_tile=key_tile, length=length).calls


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_cover_every_visible_pair_once_and_their_calls_are_the_formula_s(template: str) -> None:
    numbers = random.Random(template)
    for _ in range(700):
        text = template.format(
            left=numbers.randint(0, 20), right=numbers.choice((0, 1, 3, 19)), sinks=numbers.randint(1, 20)
        )
        block_size = numbers.choice((4, 6, 8))
        _check(text, block_size, block_size * numbers.choice((1, 2, 3)), numbers.randint(1, 45))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("left", [0, 1, 5, 6, 7, 8, 9, 15, 16, 40])
def test_any_window_fits_any_block(left: int, length: int) -> None:
    _check(f"causal & (window({left}, 0) | sinks(3))", 8, 8, length)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", 1024),
        ("causal", 528),
        ("causal & window(255, 0)", 32 + 31),
        ("causal & window(511, 0)", 32 + 30 + 1 + 30 * 1),
        ("causal & (window(511, 0) | sinks(4))", 32 + 30 + 1 + 30 * 2),
        ("causal & window(15, 0)", 2 * 32),
    ],
)
def test_counts_at_a_real_size(text: str, expected: int) -> None:
    found = maskless_formula(parse_mask(text), block_size=256, key_tile=256, length=8192)
    assert found.calls == expected
    assert found.text.endswith(f"= {found.calls}")


def test_windows_cost_linear_time_and_formulas_none() -> None:
    mask = parse_mask("causal & (window(1000, 0) | sinks(4))")
    one, two = (maskless_formula(mask, block_size=256, key_tile=256, length=n).calls for n in (10**12, 2 * 10**12))
    assert two / one == pytest.approx(2, rel=1e-6)


def test_bands() -> None:
    assert band_of(parse_mask("causal & (window(9, 0) | sinks(4))")) == Band(9, 0, 4)
    assert band_of(parse_mask("(causal & window(9, 0)) | (causal & sinks(4))")) == Band(9, 0, 4)
    for text in ("causal & chunk(8)", "causal | sinks(4)", "sinks(4)", "window(3, 3) | sinks(2)"):
        assert band_of(parse_mask(text)) is None
        with pytest.raises(InternalError, match="not a band"):
            maskless_rows(parse_mask(text), 8, 20)


def test_narrow_windows_get_codes_and_others_none() -> None:
    assert query_block(parse_mask("causal & window(15, 0)"), 100) == 96
    assert code_size(parse_mask("causal & window(15, 0)"), 100) == 4  # six sub-blocks, six words of four bits
    for text in ("causal", "full", "causal & window(99, 0)"):
        assert (query_block(parse_mask(text), 100), code_size(parse_mask(text), 100)) == (100, 0)


@pytest.mark.parametrize(("size", "words"), [(1, 1), (2, 2), (4, 6), (5, 10), (10, 252)])
def test_codes_vanish_on_their_own_word_only(size: int, words: int) -> None:
    codes = code_words(size, words)
    products = codes.astype(int) @ -(~codes).astype(int).T
    assert np.array_equal(products == 0, np.eye(words, dtype=bool))
    assert len({tuple(word) for word in codes.tolist()}) == words


def test_ceil_sum() -> None:
    for start, step in combinations(range(0, 40, 7), 2):
        for count, divisor in ((0, 3), (1, 5), (17, 4), (30, 9)):
            assert ceil_sum(count, start, step, divisor) == sum(-(-(start + step * t) // divisor) for t in range(count))
