"""Compiled models on engines that hold several stages, against torch: windowed layers, and all layers of a block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.random_models import Features, RandomTransformer
from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import quantise_weights, write_bundle
from twoheads.export.engines.jobs import engine_jobs, random_inputs
from twoheads.graphs.errors import CompileError, InputError
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle

EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)


def test_windowed_layers_in_one_call_agree_with_torch(tmp_path: Path) -> None:
    masks = ("causal & window(20, 0)", "window(9, 16)", "causal")
    model = RandomTransformer(Features(masks=masks, layers=3, q_heads=6, kv_heads=2, softcap=3.0))
    bundle = bundle_of(model, tmp_path, example_inputs=EXAMPLES, block_size=16, lowering="window")
    assert bundle.manifest.lowering == "window"
    for length in (1, 15, 16, 17, 32, 50, 97):
        assert_agrees(bundle, load_source(model, example_inputs=EXAMPLES), length)
        kinds = [stage.kind for stage in bundle.schedule(length, "hidden").stages]
        assert kinds == (["model"] if length <= 16 else ["tokenwise", "window", "window", "attention", "tokenwise"])


def test_all_layers_in_one_call_agree_with_torch(tmp_path: Path) -> None:
    masks = ("causal & window(20, 0)", "causal & window(5, 0)", "causal & (window(32, 0) | sinks(2))")
    model = RandomTransformer(Features(masks=masks, layers=4, q_heads=6, kv_heads=2, v_head_dim=8, softcap=3.0))
    bundle = bundle_of(model, tmp_path, example_inputs=EXAMPLES, block_size=16, lowering="model")
    assert bundle.manifest.lowering == "model"
    assert not (bundle.path / "engines" / "one_block.onnx").exists()
    for length in (1, 15, 16, 17, 32, 50, 97, 131):
        assert_agrees(bundle, load_source(model, example_inputs=EXAMPLES), length)
        plan = bundle.schedule(length, "hidden")
        assert [stage.kind for stage in plan.stages] == ["model"]
        assert plan.engine_calls == -(-length // 16)
    jobs = [job for job in engine_jobs(read_bundle(bundle.path)) if job.name == "model_step"]
    assert [set(random_inputs(job)) for job in jobs] == [{port.name for port in jobs[0].inputs}]


@pytest.mark.parametrize("lowering", with_long(["window", "model"], ["model"]))
def test_fused_engines_of_quantised_weights_are_those_of_tiles(tmp_path: Path, lowering: str) -> None:
    model = RandomTransformer(Features(masks=("causal & window(20, 0)",), layers=2))
    compiled = quantise_weights(compile_model(model, example_inputs=EXAMPLES, block_size=16, lowering=lowering), "int4")
    assert compiled.quantised
    tokens = np.arange(50) % 7
    found, want = (
        load(write_bundle(replace(compiled, lowering=chosen), tmp_path / chosen, generation=False)).run(
            tokens, output="hidden"
        )
        for chosen in (lowering, "tile")
    )
    assert found.array is not None
    assert want.array is not None
    assert found.report.engine_calls < want.report.engine_calls
    np.testing.assert_allclose(found.array, want.array, atol=1e-5 * float(np.abs(want.array).max()))
    with pytest.raises(InputError, match=r"weights of few bits \(int4\)"):
        engine_jobs(read_bundle(tmp_path / lowering))


def test_what_can_t_be_lowered_as_windows_is_refused_or_tiled() -> None:
    model = RandomTransformer(Features(layers=1))
    with pytest.raises(CompileError, match="no layer under a window"):
        compile_model(model, example_inputs=EXAMPLES, block_size=16, lowering="window")
    with pytest.raises(CompileError, match="attends to all earlier tokens"):
        compile_model(model, example_inputs=EXAMPLES, block_size=16, lowering="model")
    windowed = RandomTransformer(Features(layers=1, masks=("causal & window(20, 0)",)))
    assert compile_model(windowed, example_inputs=EXAMPLES, block_size=16).lowering == "tile"
    with pytest.raises(CompileError, match="lowering 'window' can't"):
        compile_model(
            windowed, example_inputs=EXAMPLES, block_size=16, lowering="window", attention="average:samples=2+window:64"
        )
