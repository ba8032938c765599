"""The models of the page on models larger than the memory, their reference, and the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tools.large_models.compile_child import PhaseMeter
from tools.large_models.make import Shape, make_model
from tools.large_models.page import render
from tools.large_models.reference import bundle_weights, folder_weights, reference_hidden
from twoheads.compiler import compile_model
from twoheads.export import quantise_weights, write_bundle
from twoheads.runtime import load

SHAPE = Shape(64, 96, 3, 4, 2, 50)


def test_the_reference_is_the_library_and_a_bundle_of_4_bits_agrees_with_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", SHAPE)
    assert len(list(folder.glob("*.safetensors"))) == 5
    tokens = np.random.default_rng(0).integers(0, 50, 40)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model.model(torch.from_numpy(tokens)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(reference_hidden(folder, folder_weights(folder), tokens), expected, atol=1e-5)
    bundle = write_bundle(quantise_weights(compile_model(folder, block_size=16), "int4"), tmp_path / "bundle")
    own = reference_hidden(folder, bundle_weights(bundle), tokens)
    found = np.asarray(load(bundle).run(tokens, output="hidden").array).reshape(own.shape)
    np.testing.assert_allclose(found, own, atol=1e-4 * np.abs(own).max())
    assert np.abs(own - expected).max() > 1e-2, "4 bits are not the model's own numbers"


def test_the_largest_layer_may_be_the_embedding() -> None:
    assert SHAPE.layer_bytes == 4 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 96 + 2 * 64)
    assert Shape(64, 96, 3, 4, 2, 5000).layer_bytes == 4 * 64 * 5000


def test_a_meter_tells_phases_apart() -> None:
    meter = PhaseMeter()
    meter.enter("small")
    meter.enter("large")
    numbers = np.ones(20 << 20, np.uint8)
    phases = meter.close()
    assert list(phases) == ["imports", "small", "large"]
    assert phases["large"]["peak_bytes"] >= phases["small"]["peak_bytes"] + numbers.nbytes // 2


def test_the_page() -> None:
    row = {
        "bundle_bytes": 4e9,
        "source_bytes": 2e9,
        "layer_bytes": 1e9,
        "compile_peak_bytes": 1.5e9,
        "compile_seconds": 100.0,
        "compile_cpu_seconds": 90.0,
        "phases": {"loading the model": {"seconds": 2.0, "peak_bytes": 5e8, "own_bytes": 3e8}},
        "machine": "a machine",
        "day": "2026-01-01",
        "load": 0.5,
    }
    ran = {"run_code": 0, "tokens": 2048, "limit": "3GB", "run_seconds": 9.0, "run_cpu_seconds": 17.0}
    page = render({"7b, 4 layers, int4": row | ran | {"run_peak_bytes": 2e9, "distance": 3e-6}, "70b": row})
    assert "| 7b, 4 layers, int4 | 4,000 | 2,000 | 1,000 | 1,500 | 1,900 | 100 | 90 | 0.5 |" in page
    assert "| 7b, 4 layers, int4 | 2,048 | 3GB | 2,000 | 9 | 17 | 3.0e-06 |" in page
    assert "| loading the model | 500 | 500 |" in page
    assert page.count("On a machine, 2026-01-01.") == 1
