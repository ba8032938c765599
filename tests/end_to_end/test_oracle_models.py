"""The oracle lowering on random small models: the paper to the letter, against torch, calls counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.random_models import Features, RandomTransformer
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.graphs.errors import CompileError

EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)

MODELS = {
    "causal, grouped": (Features(q_heads=6, kv_heads=2), 2, 4, "causal"),
    "bidirectional": (Features(masks=("full",), layers=1, v_head_dim=5), 3, 1, "full"),
    "windows with sinks": (
        Features(masks=("causal & (window(20, 0) | sinks(2))", "causal & (window(4, 0) | sinks(6))"), sinks=True),
        1,
        5,
        "causal",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_torch_at_any_length(name: str, tmp_path: Path) -> None:
    features, layers, heads, mask = MODELS[name]
    model = RandomTransformer(features)
    options = {"block_size": 16, "lowering": "oracle", "oracle_layers": layers, "oracle_heads": heads}
    bundle = bundle_of(model, tmp_path, example_inputs=EXAMPLES, **options)
    assert bundle.manifest.lowering == "oracle"
    files = {Path(file).name for file in bundle.manifest.files if "/attention_" in file}
    assert files == {f"attention_0.{mask}.onnx"}
    source = load_source(model, example_inputs=EXAMPLES)
    for length in (1, 17, 60):
        assert_agrees(bundle, source, length)


def test_scores_far_from_the_estimate_are_repeated_and_counted(tmp_path: Path) -> None:
    model = RandomTransformer(Features(positions="none", layers=1))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                weights.mul_(4)
    bundle = bundle_of(model, tmp_path, example_inputs=EXAMPLES, block_size=16, lowering="oracle")
    result = bundle.run(np.arange(150) % 61, output="hidden")
    assert result.report.repeated_calls > 0
    assert result.report.engine_calls == result.report.formula_calls + result.report.repeated_calls
    expected, _ = TorchOriginal(load_source(model, example_inputs=EXAMPLES)).hidden_and_logits(
        torch.arange(150)[None] % 61, None, "fused"
    )
    assert result.array is not None
    assert np.abs(result.array - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("features", "options", "told"),
    [
        (Features(softcap=2.0, layers=1), {}, "softcap"),
        (Features(bias="alibi", positions="none", layers=1), {}, "bias"),
        (Features(masks=("causal & chunk(20)",), layers=1), {}, "chunk"),
        (Features(), {"attention": "average:samples=2"}, "samples keys"),
        (Features(layers=1), {"oracle_heads": 0}, "oracle_heads: is 0"),
        (Features(layers=1), {"block_size": 16, "key_tile": 32}, "side by side"),
    ],
)
def test_refusals_carry_their_reason(features: Features, options: dict[str, object], told: str) -> None:
    with pytest.raises(CompileError, match=told):
        compile_model(RandomTransformer(features), example_inputs=EXAMPLES, lowering="oracle", **options)  # type: ignore[arg-type]
