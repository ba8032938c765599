"""Weights of 4 bits whose numbers stay what they are: which are found, and that the bundle is the float32 model."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.small_decoder import LENGTH, small_decoder, with_4_bits
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.export import narrow_values, quantise_weights, verify, write_bundle
from twoheads.export.cli.inspect.facts import full_matrices, precision_text
from twoheads.export.precision.deferred_quantised import has_4_bits
from twoheads.export.precision.number_formats import check_dtype, check_products
from twoheads.export.precision.quantised_arrays import dequantise, quantise_exactly
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.serialization.bundle_format import LOSSLESS
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle

ONE = "model.layers.1.mlp.down_proj.weight"


def lossless_decoder(*others: str) -> tuple[Any, CompiledModel]:
    decoder = small_decoder()
    return with_4_bits(decoder.module, decoder.model, *others)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    levels=st.integers(1, 16),
    offset=st.integers(-40, 40),
    scale=st.sampled_from([2.0**-14, 0.0037, 1.0, 900.0]),
)
def test_every_number_of_a_lattice_comes_back(seed: int, levels: int, offset: int, scale: float) -> None:
    """Of some places of a lattice at most: gaps of 2 and 3 tell nothing of its step."""
    random = np.random.default_rng(seed)
    scales = (scale * random.uniform(0.5, 1, (7, 3, 1))).astype(np.float16).astype(np.float32)
    places = random.choice(random.permutation(16)[:levels], (7, 3, 32)).astype(np.float32)
    weight = (scales * (places + np.float32(offset))).astype(np.float32).reshape(7, 96)
    made = quantise_exactly(weight)
    assert made is not None
    np.testing.assert_array_equal(dequantise(*made), weight)


def test_one_other_number_is_seen() -> None:
    numbers = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    kind = GGMLQuantizationType.Q4_0
    weight = torch.from_numpy(np.asarray(dequantize(quantize(numbers, kind), kind), np.float32))
    for transposed in (False, True):
        matrix = weight.T if transposed else weight
        assert has_4_bits(matrix, transposed=transposed)
        assert has_4_bits(StoredTensor(matrix.shape, matrix.dtype, partial(_same, matrix)), transposed=transposed)
        assert has_4_bits(torch.stack([matrix, matrix]), transposed=transposed)
        other = matrix.clone()
        other[-1, -1] *= 1 + 3e-7
        assert not has_4_bits(other, transposed=transposed)
        assert not has_4_bits(torch.stack([matrix, other]), transposed=transposed)
    for number in (np.nan, np.inf):
        broken = weight.numpy().copy()
        broken[0, 3] = number
        assert quantise_exactly(broken) is None


def test_a_decoder_is_the_float32_model(tmp_path) -> None:
    module, compiled = lossless_decoder()
    bundle = write_bundle(quantise_weights(compiled, LOSSLESS), tmp_path / "bundle", generation=False)
    manifest = read_bundle(bundle).manifest
    assert len(manifest.quantised) == 2 * 7
    assert {entry.bits for entry in manifest.quantised.values()} == {4}
    assert full_matrices(manifest) == ["lm_head.weight"]
    assert precision_text(manifest) == "float32, weights lossless (14 weights of 4 bits, 1 matrices of float32)"
    report = verify(bundle, module, length=LENGTH)
    assert report.passed, report
    assert {check.bound.unit for check in report.checks if check.bound is not None} == {"ratio"}
    assert report.perplexities[0].bundle == pytest.approx(report.perplexities[0].original, rel=1e-5)
    assert load(bundle).run(np.arange(9)).report.precision == "float32, weights lossless"
    weights = load(bundle).open_weights()
    for name, entry in manifest.quantised.items():
        stored = [weights.view(part) for part in entry.stored]
        np.testing.assert_array_equal(dequantise(*stored), module.state_dict()[name].numpy())


def test_a_wrong_number_is_no_rounding(tmp_path) -> None:
    """It is held to the noise floor, not to the bound of rounded weights."""
    module, compiled = lossless_decoder()
    bundle = write_bundle(quantise_weights(compiled, LOSSLESS), tmp_path / "bundle", generation=False)
    module.state_dict()[ONE].mul_(1 + 1e-4)
    assert not verify(bundle, module, length=LENGTH).passed


def test_what_changed_between_planning_and_writing_is_our_bug() -> None:
    _, compiled = lossless_decoder()
    made = quantise_weights(compiled, LOSSLESS)
    compiled.weights[ONE][0, 0] += 1e-3
    with pytest.raises(InternalError, match="has other numbers"):
        made.weights[f"{ONE}:int4"].read()


def test_what_has_no_4_bits_is_refused() -> None:
    with pytest.raises(CompileError, match="no matrix of 4 bits: those that a GGUF file has as Q4_0"):
        quantise_weights(small_decoder().model, LOSSLESS)


def test_a_table_stays_float32_whatever_its_numbers() -> None:
    """Look-ups read 8 bits alone, and a head of 8 bits rounds what it multiplies."""
    decoder = small_decoder()
    _, compiled = with_4_bits(decoder.module, decoder.model, end=("proj.weight", "lm_head.weight"))
    assert len(quantise_weights(compiled, LOSSLESS).quantised) == 2 * 7


def test_what_does_not_go_with_it() -> None:
    with pytest.raises(CompileError, match="lossless rounds nothing"):
        check_products("int8", weight_dtype=LOSSLESS)
    with pytest.raises(CompileError, match="lossless is asked for"):
        check_dtype("float16", lowering="tile", weight_dtype=LOSSLESS)
    _, compiled = lossless_decoder()
    with pytest.raises(CompileError, match="lossless is asked for"):
        narrow_values(quantise_weights(compiled, LOSSLESS))
