"""The stock lowering on random small models of every feature, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.random_models import Features, RandomTransformer
from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.graphs.errors import CompileError

EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)

MODELS = {
    "causal and wide window": (
        Features(masks=("causal", "causal & window(39, 0)"), q_heads=6, kv_heads=2),
        16,
        32,
        {"full", "causal"},
    ),
    "bidirectional": (Features(masks=("full",), layers=1), 16, 48, {"full"}),
    "windows as wide as a block and narrow": (
        Features(
            masks=("causal & (window(15, 0) | sinks(2))", "causal & (window(4, 0) | sinks(6))", "window(2, 2)"),
            layers=3,
        ),
        16,
        16,
        {"full", "causal"},
    ),
    "learned sinks": (Features(sinks=True, v_head_dim=5, layers=1), 16, 16, {"full", "causal"}),
    "chunks with ALiBi": (Features(masks=("causal & chunk(20)",), bias="alibi", positions="none"), 16, 32, {"masked"}),
}


@pytest.mark.parametrize("name", with_long(MODELS, [name for name in MODELS if name != "bidirectional"]))
def test_agrees_with_torch_at_any_length(name: str, tmp_path: Path) -> None:
    features, block_size, key_tile, variants = MODELS[name]
    model = RandomTransformer(features)
    options = {"example_inputs": EXAMPLES, "block_size": block_size, "key_tile": key_tile, "lowering": "stock"}
    bundle = bundle_of(model, tmp_path, **options)
    assert bundle.manifest.lowering == "stock"
    files = {Path(file).name.split(".")[1] for file in bundle.manifest.files if "/attention_" in file}
    assert files == variants
    source = load_source(model, example_inputs=EXAMPLES)
    for length in (1, 17, 150):
        assert_agrees(bundle, source, length)


def test_a_softcap_is_refused_with_its_reason() -> None:
    with pytest.raises(CompileError, match=r"softcap 2\.0.*product and its softmax") as refused:
        compile_model(RandomTransformer(Features(softcap=2.0)), example_inputs=EXAMPLES, lowering="stock")
    assert "tile" in str(refused.value.fix)
    with pytest.raises(CompileError, match="samples keys"):
        compile_model(
            RandomTransformer(Features()),
            example_inputs=EXAMPLES,
            lowering="stock",
            attention="average:samples=2",
        )


def test_scores_far_from_the_estimate_are_repeated_and_counted(tmp_path: Path) -> None:
    model = RandomTransformer(Features(positions="none", layers=1))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                weights.mul_(4)  # scores of some hundreds, of which the sampled keys say little
    bundle = bundle_of(model, tmp_path, example_inputs=EXAMPLES, block_size=16, lowering="stock")
    result = bundle.run(np.arange(150) % 61, output="hidden")
    assert result.report.repeated_calls > 0
    assert result.report.engine_calls == result.report.formula_calls + result.report.repeated_calls
    expected, _ = TorchOriginal(load_source(model, example_inputs=EXAMPLES)).hidden_and_logits(
        torch.arange(150)[None] % 61, None, "fused"
    )
    assert result.array is not None
    assert np.abs(result.array - expected.numpy()).max() < 1e-5  # at scores of some hundreds
