"""Steps that read keys and values in 8 bits: what the copy holds, on what it depends, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, MODELS, bundle, bundle_folder, tokens
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads

PAGES = "int8-steps"


def _context(name="llama"):
    return bundle(name).open_context(pages=PAGES)


def _check_copy(kept, length):
    """Every number of the copy is the nearest to the one that is kept."""
    start = length - length % BLOCK
    for at, array in kept.rounded.arrays.items():
        rows = np.concatenate([kept.past[at][:, :, :start], kept.opened[at][:, :, : length - start]], axis=2)
        scales = kept.rounded.scales[at][None]
        found = array[:, :, :length] * scales
        assert (np.abs(found - rows) <= scales * 0.5001).all()
        assert length == 0 or np.abs(found - rows).max() > 0


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_the_copy_follows_the_rows_however_they_came(name):
    told = iter(tokens(300, 5))
    with _context(name) as opened:
        context = opened
        for way, count in [
            *[("append", 2 * BLOCK + 3), ("step", 3), ("steps", 5), ("step", BLOCK), ("back", 4), ("step", 1)],
            *[("back", BLOCK + 2), ("step", 2), ("append", 5), ("step", 1), ("fork", 0), ("step", 5 * BLOCK)],
        ]:
            if way == "back":
                context.rollback(len(context) - count)
            elif way == "fork":
                context = context.fork()
            elif way == "step":
                for _ in range(count):
                    context.step(next(told))
                _check_copy(context.kept, len(context))
            else:
                getattr(context, way)([next(told) for _ in range(count)])


@pytest.mark.parametrize("back", [1, 9, 2 * BLOCK - 5])
def test_a_context_that_was_cut_back_steps_on_as_a_fresh_one(back):
    """Within the block that steps began, to where they began, and into the prompt."""
    sequence, begin = tokens(4 * BLOCK - 4, 6), 3 * BLOCK + 2
    length = len(sequence) - back
    with _context() as context, _context() as fresh:
        context.append(sequence[:begin])
        fresh.append(sequence[: min(begin, length)])
        for token in sequence[begin:]:
            context.step(token)
        for token in sequence[begin:length]:
            fresh.step(token)
        context.rollback(length)
        for token in sequence[length:]:
            np.testing.assert_array_equal(context.step(token), fresh.step(token))


def _filled(blocks):
    """Pages of whole blocks and three rows, of random numbers."""
    rounded = bundle("llama").generation.model.engines.rounded
    assert rounded is not None
    kept, rng = RoundedReads(rounded), np.random.default_rng(0)
    kept.reserve(blocks + 1)
    for at, (past, opened) in enumerate(zip(kept.past, kept.opened, strict=True)):
        past[:, :, : blocks * BLOCK] = rng.standard_normal((*past.shape[:2], blocks * BLOCK, past.shape[3])) * (at + 1)
        opened[:, :, :3] = rng.standard_normal((*opened.shape[:2], 3, opened.shape[3]))
    kept.rounded.reserve(kept)
    kept.rounded.bring(kept, blocks * BLOCK + 3)
    return kept


def test_a_row_that_does_not_fit_widens_its_channel():
    kept = _filled(2)
    before = {at: array.copy() for at, array in kept.rounded.scales.items()}
    for array in kept.rounded.new.values():
        array[...] = 0.5
    assert not kept.rounded.exceeded(kept)
    kept.rounded.new[1][0, 1, 0, 2] = -300
    assert kept.rounded.exceeded(kept)
    assert not kept.rounded.exceeded(kept), "it fits now"
    _check_copy(kept, 2 * BLOCK + 3)
    assert kept.rounded.scales[1][1, 0, 2] * 127 >= 300
    before[1][1, 0, 2] = kept.rounded.scales[1][1, 0, 2]
    for at, array in kept.rounded.scales.items():
        np.testing.assert_array_equal(array, before[at])


def test_rows_that_others_wrote_widen_theirs():
    """Behind rows that steps wrote there may be those of a call of several, with larger numbers."""
    kept = _filled(2)
    rows = {at: np.full((*array.shape[:2], 4, array.shape[3]), 90, np.float32) for at, array in enumerate(kept.opened)}
    kept.write(3, rows, 4)
    kept.rounded.bring(kept, 2 * BLOCK + 7)
    _check_copy(kept, 2 * BLOCK + 7)


def test_a_number_that_is_none_stays_none():
    kept = _filled(1)
    kept.rounded.new[0][0, 1, 0, 3] = np.nan
    assert kept.rounded.exceeded(kept)
    assert not kept.rounded.exceeded(kept)
    assert np.isnan(kept.rounded.scales[0][1, 0, 3])
    assert np.isfinite(kept.rounded.scales[0][0]).all()


@pytest.mark.parametrize(("name", "length"), [("llama", 20 * BLOCK), ("gemma", 5 * BLOCK + 3)])
def test_the_proof_tells_what_they_cost(name, length):
    report = verify_generation(bundle_folder(name), MODELS[name](), new_tokens=2 * BLOCK, length=length, pages=PAGES)
    assert report.passed
    assert report.pages == PAGES
    assert 1e-5 < report.relative_error < 0.05
    assert report.ratio > 4, "they are no approximation"


def test_steps_behind_a_whole_block_read_them():
    with _context() as context:
        context.append(tokens(BLOCK - 2))
        context.step(3)
        kept = context.kept
        assert isinstance(kept, RoundedReads)
        assert not kept.rounded.arrays
        for token in (4, 5):
            context.step(token)
        assert kept.rounded.nbytes * 4 == sum(array.nbytes for array in kept.past)
        assert context.nbytes > 5 * kept.rounded.nbytes


@pytest.mark.parametrize("name", ["mamba", "t5"])
def test_where_nothing_reads_them_they_are_refused(name):
    with pytest.raises(InputError, match="pages"):
        bundle(name).generate([5, 6], pages=PAGES)
