"""Masks as models give them: transformers' closures, and dense arrays that are recognised by evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import masking_utils as hf

from tests.graphs.sample_masks import dense
from twoheads.compiler.frontend.torch.hugging_face.hooks import mask_from_closure
from twoheads.compiler.recognition.classify_mask import classify
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Chunk, Full, Mask, Window

NO_PADDING = torch.zeros(1, dtype=torch.int64)

CLOSURES = {
    "causal": hf.causal_mask_function,
    "bidirectional": hf.bidirectional_mask_function,
    "sliding": hf.sliding_window_causal_mask_function(5),
    "sliding both sides": hf.sliding_window_bidirectional_mask_function(5),
    "chunked": hf.chunked_causal_mask_function(6, NO_PADDING),
    "either": hf.or_masks(hf.sliding_window_causal_mask_function(3), hf.chunked_causal_mask_function(7, NO_PADDING)),
}


@pytest.mark.parametrize("name", CLOSURES)
@pytest.mark.parametrize("length", [1, 5, 6, 7, 23])
def test_closures_mean_what_transformers_makes_of_them(name: str, length: int) -> None:
    function = CLOSURES[name]
    expected = hf.sdpa_mask(1, length, length, mask_function=function, allow_is_causal_skip=False, use_vmap=False)
    assert expected is not None
    assert np.array_equal(dense(mask_from_closure(function), length), expected[0, 0].numpy())


def test_a_mask_that_depends_on_data_is_refused() -> None:
    with pytest.raises(CompileError, match="padding_mask_function"):
        mask_from_closure(hf.padding_mask_function(torch.ones(1, 9, dtype=torch.bool)))


def evaluator(mask: Mask, additive: bool = False) -> Callable[[int], np.ndarray]:
    def evaluate(length: int) -> np.ndarray:
        visible = dense(mask, length)
        return (np.where(visible, 0, -np.inf).astype(np.float32) if additive else visible)[None, None]

    return evaluate


@given(
    mask=st.sampled_from(
        [Full(), Causal(), Window(9, 0), Window(4, 4), Window(3, -1), Causal() & Chunk(8), Chunk(12), Window(0, 6)]
    ),
    additive=st.booleans(),
)
def test_dense_masks_are_recognised(mask: Mask, additive: bool) -> None:
    found, bias = classify(evaluator(mask, additive), {3, 4, 6, 8, 9, 12}, "layer")
    assert bias.absent
    assert np.array_equal(dense(found or Full(), 100), dense(mask, 100))


@given(i=st.integers(0, 40), j=st.integers(0, 40))
def test_a_mask_changed_by_one_position_is_refused(i: int, j: int) -> None:
    def evaluate(length: int) -> np.ndarray:
        visible = dense(Causal(), length).copy()
        visible[i, j] ^= True
        return visible[None, None]

    with pytest.raises(CompileError, match="none of full, causal"):
        classify(evaluate, set(), "layer")


def test_a_window_only_seen_at_longer_lengths_is_found_through_its_constant() -> None:
    found, _ = classify(evaluator(Window(299, 0)), {300}, "layer")
    assert found is not None
    assert np.array_equal(dense(found, 700), dense(Window(299, 0), 700))


def test_constants_too_large_to_check_are_refused() -> None:
    with pytest.raises(CompileError, match="mentions 100000"):
        classify(evaluator(Causal()), {100_000}, "layer")


def test_heads_with_different_masks_are_refused() -> None:
    def evaluate(length: int) -> np.ndarray:
        return np.stack([dense(Causal(), length), dense(Full(), length)])[None]

    with pytest.raises(CompileError, match="different masks"):
        classify(evaluate, set(), "layer")


@pytest.mark.parametrize("mask", [Full(), Causal(), Window(20, 0)])
def test_a_linear_bias_is_recognised_with_its_exact_slopes(mask: Mask) -> None:
    slopes = (0.5 ** np.arange(1, 5)).astype(np.float32)

    def evaluate(length: int) -> np.ndarray:
        distance = np.arange(length)[None, :] - np.arange(length)[:, None]
        return np.where(dense(mask, length), slopes[:, None, None] * distance, -np.inf).astype(np.float32)[None]

    found, bias = classify(evaluate, {20}, "layer")
    assert np.array_equal(dense(found or Full(), 90), dense(mask, 90))
    assert bias.table is None
    assert bias.slope is not None
    assert np.array_equal(bias.slope, slopes)


@pytest.mark.parametrize("mask", [Full(), Causal()])
def test_a_bias_that_settles_is_recognised_with_its_table(mask: Mask) -> None:
    table = np.random.default_rng(0).normal(size=(3, 15)).astype(np.float32)

    def evaluate(length: int) -> np.ndarray:
        distance = np.arange(length)[None, :] - np.arange(length)[:, None]
        values = table[:, np.clip(distance, -7, 7) + 7]
        return np.where(dense(mask, length), values, -np.inf).astype(np.float32)[None]

    _, bias = classify(evaluate, {7}, "layer")
    assert bias.slope is None
    assert bias.table is not None
    reach = bias.table.shape[1] // 2
    seen = np.arange(-reach, reach + 1) if isinstance(mask, Full) else np.arange(-reach, 1)
    assert np.array_equal(bias.table[:, seen + reach], table[:, np.clip(seen, -7, 7) + 7])


def test_a_bias_of_the_content_is_refused() -> None:
    def evaluate(length: int) -> np.ndarray:
        return np.random.default_rng(length).normal(size=(1, 2, length, length)).astype(np.float32)

    with pytest.raises(CompileError, match="bias"):
        classify(evaluate, set(), "layer")
