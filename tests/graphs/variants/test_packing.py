"""Theorem 4.2's codes, first-fit packing, and which programs can be packed."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.engines.request_codes import ENTRY, SAFE_SCORE, code_capacity, code_length, request_codes
from twoheads.graphs.program.program import AttentionEngine
from twoheads.graphs.schedule.packed import packed_schedule
from twoheads.graphs.variants.packing import longest_packable, pack, packed_variant

BLOCKS = [16, 64, 128, 256, 1024, 4096]


@pytest.mark.parametrize("block_size", BLOCKS)
def test_codes_keep_requests_apart_and_themselves_alone(block_size):
    queries, keys = request_codes(block_size)
    assert queries.shape == keys.shape == (code_capacity(block_size) + 1, code_length(block_size))
    assert ((queries == ENTRY).sum(1) == code_length(block_size) // 2).all(), "exactly half zeros"
    products = queries.astype(np.float64) @ keys.T.astype(np.float64)
    assert (np.diag(products) == 0).all()
    others = products[~np.eye(len(products), dtype=bool)]
    assert others.max() <= -(ENTRY**2)
    assert ENTRY**2 > 2 * SAFE_SCORE + 1e6


@pytest.mark.parametrize("block_size", BLOCKS)
def test_codes_are_as_long_as_the_logarithm_of_the_requests(block_size):
    assert code_capacity(block_size) >= block_size // 4
    assert code_length(block_size) <= log2(block_size // 4) + 4


@given(st.lists(st.integers(1, 32), max_size=150))
def test_requests_lie_in_blocks_without_touching(lengths):
    packing = pack(lengths, 64)
    taken = np.zeros((packing.blocks, 64), int)
    codes = set()
    for length, slot in zip(lengths, packing.slots, strict=True):
        assert slot.length == length
        taken[slot.block, slot.start : slot.start + length] += 1
        codes.add((slot.block, slot.code))
        assert slot.code < code_capacity(64)
    assert taken.max(initial=0) <= 1
    assert (taken.sum(1) == packing.used).all()
    assert len(codes) == len(lengths), "a code of its own for every request of a block"
    assert all(taken[block, :used].all() for block, used in enumerate(packing.used)), "no gaps"
    assert packing.blocks <= max(2 * -(-sum(lengths) // 64), -(-len(lengths) // code_capacity(64)) + 1)


def test_first_fit_by_length_in_the_order_of_the_requests():
    packing = pack([10, 60, 20, 30], 64)
    assert [(slot.block, slot.start) for slot in packing.slots] == [(1, 50), (0, 0), (1, 30), (1, 0)]
    assert packing.used == (60, 60)
    assert pack([1] * 20, 16).used == (5, 5, 5, 5), "no more requests than codes"
    with pytest.raises(InternalError):
        pack([65], 64)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("full", 9, "packed"),
        ("causal", 9, "packed_causal"),
        ("causal & window(8, 0)", 9, "packed_causal"),
        ("causal & window(7, 0)", 9, None),
        ("window(8, 8)", 9, "packed"),
        ("window(8, 7)", 9, None),
        ("causal & (window(2, 0) | sinks(6))", 9, "packed_causal"),
        ("causal & chunk(8)", 9, None),
        ("causal | sinks(3)", 9, None),
        ("causal | sinks(9)", 9, "packed"),
    ],
)
def test_a_mask_packs_where_it_does_not_restrict(text, length, expected):
    assert packed_variant(parse_mask(text), length) == expected


def test_which_programs_pack():
    def longest(*texts, **options):
        return longest_packable(decoder(*map(parse_mask, texts), **options))

    assert longest("causal", block_size=32, key_tile=64) == 16
    assert longest("causal", "causal & window(4, 0)", block_size=32, key_tile=32) == 5
    assert longest("full", "causal", block_size=32, key_tile=32) == 16
    assert longest("causal & window(0, 0)") == 0
    assert longest("causal", sinks=True) == 0
    assert longest_packable(encoder()) == 0, "a bias by distance"
    program = decoder()
    for change in ({"softcap": 5.0}, {"dtype": "float16"}, {"mask_heads": 4}, {"scale": -1.0}):
        engines = tuple(
            replace(engine, **change) if isinstance(engine, AttentionEngine) else engine for engine in program.engines
        )
        assert longest_packable(replace(program, engines=engines)) == 0


@pytest.mark.parametrize("key_tile", [16, 48])
def test_a_packed_run_is_one_call_a_block_and_stage(key_tile):
    program = decoder(key_tile=key_tile)
    packing = pack([3, 8, 8, 5, 2, 7, 7], 16)
    schedule = packed_schedule(program, packing, output="logits", rows=7)
    assert schedule.engine_calls == schedule.formula_calls
    assert [stage.calls for stage in schedule.stages] == [packing.blocks] * 5 + [1]
    assert schedule.rounds == 6
