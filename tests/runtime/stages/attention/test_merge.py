"""The algebra of partial attention: neutral element, commutative, associative, and tiles that add up to the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.tiny_model import dense_attention
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.runtime import attention, merge_state

pytestmark = pytest.mark.filterwarnings("error")


def partial(seed, *, scale=1.0, dtype: Any = np.float64, dead=0.3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    out, lse = rng.standard_normal((2, 3, 7, 4)).astype(dtype), (scale * rng.standard_normal((2, 3, 7))).astype(dtype)
    masked = rng.random(lse.shape) < dead
    out[masked], lse[masked] = 0, -np.inf
    return out, lse


def close(a, b, tolerance=1e-12):
    for got, want in zip(a, b, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]))
def test_commutative_associative_neutral(seed, scale):
    a, b, c = (partial(3 * seed + at, scale=scale) for at in range(3))
    close(merge_state(*a, *b), merge_state(*b, *a))
    left, right = merge_state(*a, *b), merge_state(*b, *c)
    close(merge_state(*left, *c), merge_state(*a, *right))
    nothing = (np.zeros_like(a[0]), np.full_like(a[1], -np.inf))
    close(merge_state(*a, *nothing), a, 0)
    close(merge_state(*nothing, *a), a, 0)


def test_rows_that_see_nothing_stay_nothing():
    nothing = (np.zeros((2, 3)), np.full(2, -np.inf))
    out, lse = merge_state(*nothing, *nothing)
    assert (out == 0).all()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_stay(dtype):
    out, lse = merge_state(*partial(1, dtype=dtype), *partial(2, dtype=dtype))
    assert out.dtype == lse.dtype == dtype
    assert np.isfinite(out).all()


MASKS = (
    None,
    "full",
    "causal",
    "window(3, 2)",
    "causal & (window(4, 0) | sinks(2))",
    "chunk(5)",
    "window(-1, 0) & sinks(3) & chunk(4)",
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mask=st.sampled_from(MASKS),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    block=st.integers(1, 17),
    tile=st.none() | st.integers(1, 17),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    softcap=st.sampled_from([0.0, 2.5]),
    with_sinks=st.booleans(),
)
def test_blockwise_equals_dense(seed, mask, queries, keys, block, tile, heads, softcap, with_sinks):
    rng = np.random.default_rng(seed)
    q = 3 * rng.standard_normal((heads[0], queries, 5))
    k, v = rng.standard_normal((heads[1], keys, 5)), rng.standard_normal((heads[1], keys, 3))
    sinks = rng.standard_normal(heads[0]) if with_sinks else None
    out, lse = attention(q, k, v, mask=mask, softcap=softcap, sinks=sinks, block_size=block, key_tile=tile)
    i, j = np.arange(queries)[:, None], np.arange(keys)[None, :]
    visible = parse_mask(mask or "full").dense(i, j)
    want = dense_attention(q, k, v, visible=visible, bias=np.zeros(1), softcap=softcap, sinks=sinks)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    # exp(lse) is the sum of all weights: check it by appending one key of known score.
    seen = visible.any(-1) if sinks is None else np.ones(queries, bool)
    assert (np.isfinite(lse) == seen).all()
    scores = q @ k.repeat(heads[0] // heads[1], 0).transpose(0, 2, 1) * 5**-0.5
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    total = np.where(visible, np.exp(scores), 0).sum(-1) + (0 if sinks is None else np.exp(sinks)[:, None])
    np.testing.assert_allclose(np.exp(lse), total, rtol=1e-10, atol=0)


def test_it_skips_empty_tiles(monkeypatch):
    from twoheads.runtime.stages.attention import merge

    tiles: list[Any] = []
    original = merge._tile

    def tile(*args):
        tiles.append(args[3])
        return original(*args)

    monkeypatch.setattr(merge, "_tile", tile)
    q = np.ones((1, 64, 2))
    attention(q, q, q, mask="causal & window(8, 0)", block_size=8)
    assert len(tiles) == 15  # two tiles a row of blocks, one in the first
    tiles.clear()
    attention(q, q, q, mask="causal", block_size=8)
    assert len(tiles) == 36
    assert sum(tile is not None for tile in tiles) == 8


def test_leading_dimensions_scale_and_mask_objects():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 4, 9, 5)), rng.standard_normal((2, 3, 2, 9, 5))
    mask: Mask = parse_mask("causal")
    out, lse = attention(q, k, k, mask=mask, scale=0.7, block_size=4)
    assert out.shape == (2, 3, 4, 9, 5)
    one, one_lse = attention(q[1, 2] * 0.7 * 5**0.5, k[1, 2], k[1, 2], mask="causal")
    close((out[1, 2], lse[1, 2]), (one, one_lse), 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_dtypes(dtype):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 20, 8)).astype(dtype)
    out, lse = attention(q, q, q, mask="window(2, 0) & chunk(3)", block_size=6)
    assert out.dtype == lse.dtype == dtype
    want, _ = attention(*[q.astype(np.float64)] * 3, mask="window(2, 0) & chunk(3)")
    np.testing.assert_allclose(out, want, atol=5e-3 if dtype == np.float16 else 2e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"q": np.ones((3, 4, 2))},
        {"q": np.ones((2, 4, 3))},
        {"k": np.ones((2, 5, 2))},
        {"q": np.ones((4, 2))},
        {"sinks": np.ones(3)},
        {"block_size": 0},
        {"key_tile": 0},
    ],
)
def test_arguments_that_do_not_fit(change):
    arguments = {"q": np.ones((2, 4, 2)), "k": np.ones((2, 4, 2)), "v": np.ones((2, 4, 2))} | change
    with pytest.raises(InputError):
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_a_mask_that_is_none():
    with pytest.raises(CompileError):
        attention(*[np.ones((1, 2, 2))] * 3, mask="diagonal")
