"""Contexts of lower precisions and under an imposed window, against whole runs of the same bundle."""

from __future__ import annotations

import warnings
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.export.small_decoder import with_4_bits
from tests.runtime.generation.decoders import BEYOND
from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export import narrow_values, quantise_weights, write_bundle
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import TokenwiseStage
from twoheads.runtime import load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from twoheads.runtime.generation.generated import Generated

BLOCK = 16
WIDEST = BEYOND * BLOCK


@cache
def _model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@cache
def _compiled() -> CompiledModel:
    return compile_model(_model(), block_size=BLOCK)


def test_weights_that_do_not_fit_are_told(tmp_path):
    """Those of float32 are mapped, so tokens come; packed ones would have to stay."""
    path = write_bundle(_compiled(), tmp_path / "b")
    told = [warning.message for warning in _warnings_of(load(path, memory_limit=1 << 40))]
    assert not [message for message in told if "memory limit" in str(message)]
    limited = load(path, memory_limit=1)
    with pytest.warns(
        UserWarning, match=r"a token reads 4\d\d\.\d kB of weights, and the memory limit has room for 0"
    ) as found:
        limited.generate([5, 6, 7], max_new_tokens=3)
    assert {warning.filename for warning in found} == {__file__}
    packed = write_bundle(quantise_weights(_compiled(), "int4"), tmp_path / "packed")
    with pytest.raises(InputError, match="of weights at a time, and the process takes"):
        load(packed, memory_limit=1).generate([5, 6, 7], max_new_tokens=3)


@pytest.mark.parametrize("staying", with_long([0, 2], [2]))
def test_packed_weights_that_do_not_fit_are_there_for_their_stage_alone(staying, tmp_path, monkeypatch):
    """The first stages stay, and the others open for each call: the same continuations, alone and in a batch."""
    folder = write_bundle(quantise_weights(_compiled(), "int4"), tmp_path / "b")
    prompts = [[5, 6, 7], list(range(3, 3 + BLOCK + 2))]
    whole, limited = load(folder, threads=1), load(folder, threads=1, memory_limit=1 << 40)
    sizes = _stage_bytes(limited)
    limited.memory_limit = limited.process_bytes + 2 * max(sizes) + sum(sizes[:staying])
    passed: list[weakref.ref[Any]] = []
    load_engine = OnnxRuntimeBackend.load_engine

    def noted(self, file):
        assert all(handle() is None for handle in passed), "one at a time"
        handle = load_engine(self, file)
        if file.weights and not file.shared:
            passed.append(weakref.ref(handle))
        return handle

    monkeypatch.setattr(OnnxRuntimeBackend, "load_engine", noted)
    with pytest.warns(UserWarning, match=r"do not fit into the memory limit, and are read and packed again"):
        alone = [_continued(limited, prompt) for prompt in prompts]
    assert alone == [_continued(whole, prompt) for prompt in prompts]
    calls = len(passed)
    assert (len(sizes) - staying) * 2 * (BLOCK - 1) <= calls <= (len(sizes) - staying) * 2 * (BLOCK + 3)
    with limited.open_batch() as batch, whole.open_batch() as other:
        mine, own = ([b.submit(prompt, max_new_tokens=BLOCK) for prompt in prompts] for b in (batch, other))
        for running in (batch, other):
            for _ in running:
                pass
        assert [request.result().tokens for request in mine] == [request.result().tokens for request in own]


def test_a_limit_changes_no_bit_where_blocks_are_wide(tmp_path):
    """Weights are packed with a limit as without: kernels that read them in place sum in another order."""
    folder = write_bundle(compile_model(_model(), block_size=128), tmp_path / "b")
    tokens = np.random.default_rng(0).integers(3, 128, 300)
    whole, limited = load(folder), load(folder, memory_limit=1 << 40)
    for output in ("hidden", "last"):
        first, second = (bundle.run(tokens, output=output).array for bundle in (whole, limited))
        assert first is not None
        assert second is not None
        assert np.array_equal(first, second)
    assert limited._engines._in_place == whole._engines._in_place


def _continued(bundle, prompt):
    made = bundle.generate(prompt, max_new_tokens=BLOCK)
    assert isinstance(made, Generated)
    return list(made.tokens)


def _stage_bytes(bundle):
    """Bytes of the weights of each stage that has some."""
    program = bundle.program
    costs = StageCosts(program, dict.fromkeys(input_axes(program), 1), 1)
    stages = [stage for stage in (*program.body, *program.head) if isinstance(stage, TokenwiseStage)]
    return [sum(costs.weights((stage,), mapped=True).values()) for stage in stages]


def _warnings_of(bundle):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        bundle.generate([5, 6, 7], max_new_tokens=1)
    return found


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_products_of_8_bits(weights, tmp_path):
    """Cut back contexts have the bits of fresh ones, and the loss is told: it is no rounding error."""
    bundle = write_bundle(quantise_weights(_compiled(), weights, "int8"), tmp_path / "b")
    report = verify_generation(bundle, _model(), new_tokens=2 * BLOCK + 3, length=21)
    assert report.passed
    assert report.rollback_equal
    assert report.precision == f"float32, weights {weights}, products int8"
    assert report.relative_error > 1e-4


def test_lossless_weights_generate_as_float32_does(tmp_path, monkeypatch):
    """Layers are packed once, a float32 head is read where it lies, and no limit of memory changes a token."""
    module, compiled = with_4_bits(_model(), _compiled())
    folder = write_bundle(quantise_weights(compiled, "lossless"), tmp_path / "b")
    report = verify_generation(folder, module, new_tokens=2 * BLOCK + 3, length=21)
    assert report.passed, report
    assert report.ratio < 4
    assert report.precision == "float32, weights lossless"
    heads: list[bool] = []
    load_engine = OnnxRuntimeBackend.load_engine

    def noted(self, file):
        head = any("lm_head" in name for name in file.weights)
        heads.extend([file.in_place] if head else [])
        assert not file.in_place or not any(array.dtype == np.uint8 for array in file.weights.values())
        return load_engine(self, file)

    monkeypatch.setattr(OnnxRuntimeBackend, "load_engine", noted)
    whole, limited = load(folder, threads=1), load(folder, threads=1, memory_limit=1 << 40)
    sizes = _stage_bytes(limited)
    limited.memory_limit = limited.process_bytes + 2 * max(sizes) + sizes[0]
    with pytest.warns(UserWarning, match=r"do not fit into the memory limit"):
        assert _continued(limited, [5, 6, 7]) == _continued(whole, [5, 6, 7])
    assert heads
    assert all(heads)


def test_layers_of_a_file_that_mixes_formats_have_engines_of_their_own(tmp_path):
    """One matrix that is not of 4 bits keeps no other from them; layers shared its engine."""
    other = "model.layers.0.mlp.down_proj.weight"
    module, compiled = with_4_bits(_model(), _compiled(), other)
    made = quantise_weights(compiled, "lossless")
    assert len(made.quantised) == 3 * 7 - 1
    assert other in made.weights
    assert len(made.program.tokenwise_engines) == len(compiled.program.tokenwise_engines) + 1
    bundle = write_bundle(made, tmp_path / "b")
    report = verify_generation(bundle, module, new_tokens=BLOCK, length=2 * BLOCK + 1)
    assert report.passed, report


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_context_is_a_whole_run(precision, tmp_path):
    compiled = narrow_values(_compiled()) if precision == "fp16" else quantise_weights(_compiled(), precision)
    bundle = load(write_bundle(compiled, tmp_path / "b"), threads=1)
    tokens = np.random.default_rng(1).integers(3, 128, WIDEST + 40)
    expected = bundle.run(tokens, output="logits").array
    assert expected is not None
    # The head of int4 rounds its activations to 8 bits: a last bit may decide which way.
    limit = {"int4": 1e-2, "fp16": 5e-3}[precision] * np.abs(expected).max()
    with bundle.open_context() as context:
        for stop in (40, WIDEST - 20, WIDEST + 25):
            assert np.abs(context.append(tokens[len(context) : stop]) - expected[stop - 1]).max() < limit
            for token in tokens[stop : stop + 15]:
                logits = context.step(int(token))
                assert np.abs(logits - expected[len(context) - 1]).max() < limit


def test_an_imposed_window_is_exact_in_constant_memory(tmp_path):
    compiled = compile_model(_model(), block_size=BLOCK, attention="window:24+sinks:3")
    folder = write_bundle(compiled, tmp_path / "b")
    prompt = np.random.default_rng(0).integers(3, 128, 40)
    report = verify_generation(folder, _model(), new_tokens=5 * BLOCK, tokens=prompt)
    assert report.passed
    with load(folder, threads=1).open_context() as context:
        context.append(prompt)
        context.append(np.random.default_rng(2).integers(3, 128, 3 * BLOCK))  # rings are full
        held = context.nbytes
        for _ in range(3):
            context.append(np.random.default_rng(2).integers(3, 128, WIDEST))
            assert context.nbytes == held
