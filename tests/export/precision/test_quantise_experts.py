"""Experts that are gathered by expert, with weights of few bits: the library's numbers with those weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from tests.export.small_decoder import with_4_bits
from tests.mixtures import BLOCK, CHOSEN, CLASSES, EXPERTS, mixture
from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.compiler.ir.weights import parts_in_memory
from twoheads.export import quantise_weights, verify, write_bundle
from twoheads.export.precision.deferred_quantised import deferred_quantised
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import ExpertsEngine
from twoheads.runtime import load

LENGTH = 70


@cache
def _olmoe() -> Any:
    """Both products over whole blocks of 32."""
    torch.manual_seed(0)
    config = hf.OlmoeConfig(
        vocab_size=CLASSES, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_experts=EXPERTS, num_experts_per_tok=CHOSEN, pad_token_id=None,
    )  # fmt: skip
    return hf.OlmoeForCausalLM(config).eval()


@cache
def _compiled(name: str) -> CompiledModel:
    model = _olmoe() if name == "wide" else mixture(name)
    return compile_model(model, block_size=BLOCK, experts="grouped")


def _engine(compiled: CompiledModel) -> ExpertsEngine:
    (engine,) = (engine for engine in compiled.program.engines if isinstance(engine, ExpertsEngine))
    return engine


@pytest.mark.parametrize(("name", "weights"), [("wide", "int8"), ("wide", "int4"), ("gpt_oss", "int4")])
def test_the_original_agrees_with_the_same_weights(name: str, weights: str, tmp_path: Path) -> None:
    """Weights that lie transposed and have biases, and rows that are no whole blocks, are among them."""
    compiled = quantise_weights(_compiled(name), weights)
    bits = 4 if weights == "int4" else 8
    assert (_engine(compiled).up_bits, _engine(compiled).down_bits) == (bits, bits if name == "wide" else 0)
    bundle = write_bundle(compiled, tmp_path / "bundle", generation=False)
    report = verify(bundle, _olmoe() if name == "wide" else mixture(name), length=LENGTH)
    assert report.passed, report
    assert "experts" in " ".join(load(bundle).manifest.quantised)
    read, plain = (_engine(one).expert_bytes for one in (compiled, _compiled(name)))
    assert read < plain * (0.3 if weights == "int8" else 0.2) or name == "gpt_oss"
    result = load(bundle).run(np.arange(LENGTH) % CLASSES, output="hidden")
    assert result.report.expert_bytes % read == 0


def test_experts_keep_the_4_bits_that_they_have(tmp_path: Path) -> None:
    """One stack of other numbers has the engine of its layer to itself, and keeps no other from its 4 bits."""
    names = [
        f"model.layers.{layer}.mlp.experts.{product}" for layer in (0, 1) for product in ("gate_up_proj", "down_proj")
    ]
    ends = tuple(names[:3])
    module, compiled = with_4_bits(_olmoe(), _compiled("wide"), end=ends)
    made = quantise_weights(compiled, "lossless")
    assert sorted(made.quantised) == sorted(ends)
    bits = [(e.up_bits, e.down_bits) for e in made.program.engines if isinstance(e, ExpertsEngine)]
    assert bits == [(4, 4), (4, 0)]
    bundle = write_bundle(made, tmp_path / "bundle", generation=False)
    report = verify(bundle, module, length=LENGTH)
    assert report.passed, report
    assert {check.bound.unit for check in report.checks if check.bound is not None} == {"ratio"}


def test_a_wrong_scale_fails(tmp_path: Path) -> None:
    bundle = write_bundle(quantise_weights(_compiled("wide"), "int8"), tmp_path / "bundle", generation=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    names = "model.layers.{}.mlp.experts.down_proj"
    manifest["quantised"][names.format(1)]["scales"] = [f"{names.format(0)}:scales"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert not verify(bundle, _olmoe(), length=LENGTH).passed


def test_a_step_computes_what_a_run_does(tmp_path: Path) -> None:
    bundle = load(write_bundle(quantise_weights(_compiled("wide"), "int4"), tmp_path / "bundle"))
    tokens = np.arange(40) % CLASSES
    with bundle.open_context() as context:
        context.append(tokens[:-1])
        step = np.asarray(context.step(int(tokens[-1])))
    want = np.asarray(bundle.run(tokens, output="last").array)
    np.testing.assert_allclose(step.reshape(-1), want.reshape(-1), atol=1e-4 * np.abs(want).max())


def test_one_expert_is_in_memory_at_a_time() -> None:
    numbers = torch.randn((5, 6, 64), generator=torch.Generator().manual_seed(0))
    seen: list[int] = []

    def part(number: int) -> torch.Tensor:
        seen.append(number)
        return numbers[number]

    def whole() -> torch.Tensor:
        raise AssertionError("the whole stack was read")

    stored = StoredTensor(numbers.shape, numbers.dtype, whole, None, part)
    parts = deferred_quantised("w", stored, 4, transposed=False)
    plain = deferred_quantised("w", numbers, 4, transposed=False)
    for mine, own in zip(parts, plain, strict=True):
        np.testing.assert_array_equal(np.stack(list(parts_in_memory(mine))), own.read())
    assert seen == list(range(5)), "each expert is read once for its values, scales and offsets"


def test_an_expert_that_is_not_finite_is_named() -> None:
    numbers = torch.zeros((3, 4, 32))
    numbers[2, 1, 3] = float("nan")
    with pytest.raises(CompileError, match=r"weight w\[2\]"):
        deferred_quantised("w", numbers, 8, transposed=False)[0].read()
