"""Pages of 8 bits: how far they are off, what they save, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, MODELS, bundle, bundle_folder, tokens
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.errors import InputError
from twoheads.runtime import load
from twoheads.runtime.generation.kept.rounded import RoundedBlocks


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_block_is_off_by_half_a_scale_at_most(name):
    steps = bundle(name).generation.steps
    kept, rng = RoundedBlocks(steps), np.random.default_rng(0)
    given = [rng.standard_normal(array.shape).astype(array.dtype) * 3 for array in kept.opened]
    given[0][:, 0] = 0
    kept.reserve(1)
    kept.write(0, dict(enumerate(given)), BLOCK)
    kept.complete(0)
    for at, array in enumerate(given):
        found = kept.tile(at, None, 0)[:, :, :BLOCK]
        scales = np.abs(array).max(axis=(2, 3), keepdims=True) / 127
        assert (np.abs(found - array) <= scales * 0.501).all()
        assert at == 0 or np.abs(found - array).max() > 0
    assert not kept.tile(0, None, 0)[:, 0].any()
    kept.reopen(0)
    np.testing.assert_array_equal(kept.opened[1], kept.tile(1, None, 1)[:, :, :BLOCK])


def test_a_number_that_is_none_stays_none():
    kept = RoundedBlocks(bundle("llama").generation.steps)
    for wrong in (np.nan, np.inf):
        kept.reserve(1)
        kept.opened[0][0, 0, 3, 2] = wrong
        kept.complete(0)
        assert np.isnan(kept.tile(0, None, 0)[0, 0, :BLOCK]).all()
        assert np.isfinite(kept.tile(0, None, 0)[0, 1, :BLOCK]).all()


@pytest.mark.parametrize(("name", "length"), [("llama", 40 * BLOCK), ("gemma", 5 * BLOCK + 3), ("t5", 40)])
def test_the_proof_tells_what_they_cost(name, length):
    report = verify_generation(bundle_folder(name), MODELS[name](), new_tokens=2 * BLOCK, length=length, pages="int8")
    assert report.passed
    assert report.pages == "int8"
    assert 1e-4 < report.relative_error < 0.05
    assert report.ratio > 4, "they are no approximation"


def test_they_take_a_fourth():
    sequence = tokens(40 * BLOCK + 2)
    with bundle("llama").open_context(pages="int8") as rounded, bundle("llama").open_context() as plain:
        rounded.append(sequence)
        plain.append(sequence)
        sizes = [
            sum(array.nbytes for arrays in (kept.past, *kept.segments) for array in arrays)
            for kept in (rounded.kept, plain.kept)
        ]
        assert sizes[0] < 0.27 * sizes[1]
        assert rounded.nbytes < plain.nbytes


def test_where_they_are_not_kept_they_are_refused(tmp_path):
    llama = bundle("llama")
    with pytest.raises(InputError, match="are 'int4'"):
        llama.generate([5, 6], pages="int4")
    context = llama.open_context(pages="int8")
    with pytest.raises(InputError, match="has its own"):
        llama.generate([5, 6], context=context, pages="int8")
    with pytest.raises(InputError, match="no file keeps"):
        llama.save_context(context, tmp_path / "c")
    with llama.open_batch() as batch, pytest.raises(InputError, match="pages"):
        batch.submit([5, 6], pages="int8")
    other = load(bundle_folder("llama"), threads=1)
    other.generation.keep_prefixes(1 << 20)
    with pytest.raises(InputError, match="kept beginnings are not"):
        other.open_context(pages="int8")
