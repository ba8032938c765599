"""Documents behind one another: their mask against plain enumeration, and where they are put."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs.sample_masks import Sizes, classes, dense, masks
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.costs.call_formulas import attention_formula
from twoheads.graphs.masks.documents import Documents
from twoheads.graphs.masks.expressions import Full, Mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.program import AttentionStage
from twoheads.graphs.schedule.packed import packed_schedule
from twoheads.graphs.variants.packing import pack, takes_documents

PIECES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30)), min_size=1, max_size=6)
"""Documents as the gap before each and its length."""


def placed(pieces: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Starts and lengths, and the rows of all."""
    ends = np.cumsum(np.array(pieces).sum(1))
    lengths = tuple(length for _, length in pieces)
    return tuple(int(end) - length for end, length in zip(ends, lengths, strict=True)), lengths, int(ends[-1])


def enumerated(inner: Mask, starts: tuple[int, ...], lengths: tuple[int, ...], rows: int) -> npt.NDArray[np.bool_]:
    visible = np.zeros((rows, rows), np.bool_)
    for start, length in zip(starts, lengths, strict=True):
        visible[start : start + length, start : start + length] = dense(inner, length)
    return visible


@settings(max_examples=150, deadline=None)
@given(inner=masks, pieces=PIECES, block=st.sampled_from([4, 8]), ratio=st.integers(1, 3))
def test_every_document_has_its_own_mask_and_no_other_one(inner, pieces, block, ratio):
    starts, lengths, rows = placed(pieces)
    mask = Documents(inner, starts, lengths)
    visible = enumerated(inner, starts, lengths, rows)
    assert (dense(mask, rows) == visible).all()
    of = Sizes(block, block * ratio, rows)
    segments = [row_segments(mask, at, **of.keywords()) for at in range(of.blocks)]
    for at, row in enumerate(segments):
        found = [(tile, segment.full) for segment in row for tile in range(segment.start, segment.stop)]
        assert found == classes(visible, at, of)
    counted = sum(segment.tiles for row in segments for segment in row)
    assert attention_formula(mask, **of.keywords()).calls == counted


def test_distant_documents_cost_no_calls():
    mask = Documents(Full(), (0, 100, 160), (100, 50, 96))
    rows = [row_segments(mask, at, block_size=16, key_tile=16, length=256) for at in range(16)]
    assert [sum(segment.tiles for segment in row) for row in rows] == [7] * 6 + [10] + [4] * 3 + [6] * 6
    assert str(mask) == "full in each of 3 documents"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60))
def test_long_documents_begin_a_block_and_share_their_last(lengths):
    packing = pack(lengths, 16, coded=False)
    taken = np.zeros(16 * packing.blocks, int)
    for length, slot in zip(lengths, packing.slots, strict=True):
        first = packing.first_row(slot)
        taken[first : first + length] += 1
        assert slot.start == 0 if length > 16 else slot.start + length <= 16
    used = taken.reshape(-1, 16)
    assert taken.max() == 1
    assert (used.sum(1) == packing.used).all()
    assert all(used[block, :count].all() for block, count in enumerate(packing.used)), "no gaps"
    assert packing.blocks <= sum(-(-length // 16) for length in lengths)


def test_the_schedule_of_documents_counts_their_tiles():
    program = encoder()
    size = program.block_size
    packing = pack([3 * size + 1, size - 1, 1], size, coded=False)
    assert packing.used == (size, size, size, size, 1)
    schedule = packed_schedule(program, packing, output="hidden")
    attentions = [stage for stage in schedule.stages if stage.kind == "attention"]
    assert all(stage.calls == stage.formula.calls == 4 * 4 + 1 for stage in attentions)


@pytest.mark.parametrize("program", [encoder(), decoder()], ids=["encoder", "decoder"])
def test_drawn_keys_know_nothing_of_documents(program):
    assert takes_documents(program)
    average = Average(samples=1, window=None, sinks=0, seed=0)
    body = tuple(
        replace(stage, average=average) if isinstance(stage, AttentionStage) else stage for stage in program.body
    )
    assert not takes_documents(replace(program, body=body))
