"""Tile classification: exact, shared where it may be, and cheap."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings

from tests.graphs.sample_masks import Sizes, classes, dense, masks, sizes
from tests.tiers import cases
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.masks.tiles import Segment, mask_tile, row_segments, tile_key

if TYPE_CHECKING:
    from collections.abc import Hashable


def _classes(mask: Mask, block: int, of: Sizes) -> list[tuple[int, bool]]:
    segments = row_segments(mask, block, **of.keywords())
    return [(tile, segment.full) for segment in segments for tile in range(segment.start, segment.stop)]


@pytest.mark.repeated
@settings(max_examples=cases(150, 400), deadline=None)
@given(masks, sizes)
def test_classification_is_exact(mask: Mask, of: Sizes) -> None:
    visible = dense(mask, of.length)
    for block in range(of.blocks):
        assert _classes(mask, block, of) == classes(visible, block, of)


@given(masks, sizes)
def test_segments_are_ascending_and_full_runs_are_whole(mask: Mask, of: Sizes) -> None:
    for block in range(of.blocks):
        segments = row_segments(mask, block, **of.keywords())
        assert all(segment.full or segment.tiles == 1 for segment in segments)
        for before, after in pairwise(segments):
            assert before.stop <= after.start
            assert not (before.full and after.full and before.stop == after.start)


@pytest.mark.parametrize(
    ("text", "block", "expected"),
    [
        ("causal", 3, [Segment(0, 3, True), Segment(3, 4, False)]),
        ("causal", 9, [Segment(0, 9, True), Segment(9, 10, False)]),
        ("full", 9, [Segment(0, 9, True), Segment(9, 10, False)]),
        ("causal & window(7, 0)", 5, [Segment(4, 5, False), Segment(5, 6, False)]),
        ("causal & (window(8, 0) | sinks(2))", 5, [Segment(0, 1, False), Segment(4, 5, False), Segment(5, 6, False)]),
        ("causal & window(-1, 5)", 2, [Segment(0, 2, True), Segment(2, 3, False)]),
        ("chunk(16)", 3, [Segment(2, 4, True)]),
        ("window(-1, 0) | window(0, -1)", 4, [Segment(0, 9, True), Segment(9, 10, False)]),
        ("sinks(3) & window(2, 0)", 4, []),
    ],
)
def test_examples_by_hand(text: str, block: int, expected: list[Segment]) -> None:
    assert list(row_segments(parse_mask(text), block, block_size=8, key_tile=8, length=75)) == expected


@pytest.mark.repeated
@settings(max_examples=cases(80, 200), deadline=None)
@given(masks, masks, sizes)
def test_equal_keys_mean_equal_tiles_also_across_masks(a: Mask, b: Mask, of: Sizes) -> None:
    tiles: dict[Hashable, np.ndarray] = {}
    for mask in (a, b):
        for block in range(of.blocks):
            for tile in range(of.tiles):
                key = tile_key(mask, block, tile, **of.keywords())
                visible = mask_tile(mask, block, tile, **of.keywords())
                assert np.array_equal(tiles.setdefault(key, visible), visible), (str(mask), block, tile)


@pytest.mark.repeated
@settings(max_examples=cases(80, 200), deadline=None)
@given(masks, sizes)
def test_mask_tiles_show_real_queries_exactly_what_the_mask_says(mask: Mask, of: Sizes) -> None:
    visible = np.zeros((of.blocks * of.block_size, of.tiles * of.key_tile), np.bool_)
    visible[: of.length, : of.length] = dense(mask, of.length)
    for block in range(of.blocks):
        rows = slice(block * of.block_size, min((block + 1) * of.block_size, of.length))
        for tile in range(of.tiles):
            found = mask_tile(mask, block, tile, **of.keywords())
            assert found.shape == (of.block_size, of.key_tile)
            wanted = visible[rows, tile * of.key_tile : (tile + 1) * of.key_tile]
            assert np.array_equal(found[: rows.stop - rows.start], wanted)


def _distinct_partial_tiles(text: str, length: int, block_size: int = 16) -> int:
    mask, of = parse_mask(text), Sizes(block_size, block_size, length)
    keys: defaultdict[Hashable, int] = defaultdict(int)
    for block in range(of.blocks):
        for segment in row_segments(mask, block, **of.keywords()):
            if not segment.full:
                keys[tile_key(mask, block, segment.start, **of.keywords())] += 1
    return len(keys)


@pytest.mark.parametrize("length", [400, 401, 415])
@pytest.mark.parametrize(
    ("text", "distinct"),
    [
        ("causal", 1),
        ("causal & window(31, 0)", 2),
        ("causal & window(35, 0)", 3),
        ("causal & (window(31, 0) | sinks(4))", 3),
    ],
)
def test_structured_masks_share_their_tiles_at_every_length(text: str, distinct: int, length: int) -> None:
    # The sinks' tile and the window's overlap in the first rows only, which costs at most two more.
    assert distinct <= _distinct_partial_tiles(text, length) <= distinct + 2 * ("sinks" in text)


def test_the_diagonal_tile_is_shared_between_causal_and_windowed_layers() -> None:
    of = {"block_size": 16, "key_tile": 16, "length": 100}
    keys = [tile_key(parse_mask(text), 3, 3, **of) for text in ("causal", "causal & window(31, -1)")]
    assert keys[0] == keys[1]


def test_padding_is_hidden_where_the_mask_would_show_it() -> None:
    tile = mask_tile(parse_mask("full"), 1, 1, block_size=4, key_tile=4, length=6)
    assert tile.tolist() == [[True, True, False, False]] * 4
    diagonal = mask_tile(parse_mask("causal"), 1, 1, block_size=4, key_tile=4, length=6)
    assert np.array_equal(diagonal, np.tri(4, dtype=np.bool_))


@pytest.mark.parametrize(("text", "most"), [("causal", 2), ("full", 2), ("causal & (window(511, 0) | sinks(4))", 5)])
def test_a_row_of_a_million_tokens_is_a_few_segments(text: str, most: int) -> None:
    mask = parse_mask(text)
    for block in (0, 1, 5, 2000, 3906):
        assert len(row_segments(mask, block, block_size=256, key_tile=256, length=1_000_000)) <= most


def test_a_block_outside_of_the_input_is_our_bug() -> None:
    with pytest.raises(InternalError, match="block 2 of 8 tokens is not in an input of 16"):
        row_segments(parse_mask("full"), 2, block_size=8, key_tile=8, length=16)
