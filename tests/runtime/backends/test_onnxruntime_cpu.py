"""Weights that engines of several sizes read: where they lie, and with the bits that copies of theirs have."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export import quantise_weights, write_bundle
from twoheads.runtime import load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeEngine
from twoheads.runtime.backends.protocol import EngineFile


class Recording(OnnxRuntimeBackend):
    """Keeps what is opened, and whether with packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: dict[str, bool] = {}

    def load_engine(self, file: EngineFile) -> OnnxRuntimeEngine:
        engine = super().load_engine(file)
        if file.weights:
            entry = engine.session.get_session_options().get_session_config_entry
            try:
                self.packed[file.path.stem] = entry("session.disable_prepacking") != "1"
            except RuntimeError:  # no such entry
                self.packed[file.path.stem] = True
        return engine


@cache
def _compiled(block: int) -> CompiledModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    return compile_model(LlamaForCausalLM(config).eval(), block_size=block)


def _runs(bundle: Any, length: int) -> tuple[Any, dict[str, bool]]:
    backend = Recording()
    loaded = load(bundle, threads=1, backend=backend)
    tokens = np.random.default_rng(0).integers(0, 64, length)
    hidden = loaded.run(tokens, output="hidden").array
    if bundle.name != "runs":
        with loaded.open_context() as context:
            context.append(tokens)
    return hidden, backend.packed


def test_runs_and_steps_read_the_same_float32_weights(tmp_path: Any) -> None:
    both = write_bundle(_compiled(128), tmp_path / "both")
    runs = write_bundle(_compiled(128), tmp_path / "runs", generation=False)
    found, opened = _runs(both, 300)
    expected, packed = _runs(runs, 300)
    assert {name.startswith("step_") for name in opened} == {True, False}
    assert not any(opened.values())
    assert all(packed.values())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["small blocks", "4 bits"])
def test_others_are_packed_where_that_is_faster(tmp_path: Any, kind: str) -> None:
    compiled = _compiled(16) if kind == "small blocks" else quantise_weights(_compiled(128), "int4")
    _, packed = _runs(write_bundle(compiled, tmp_path / "both"), 40)
    runs = {name: found for name, found in packed.items() if not name.startswith("step_")}
    assert runs
    assert all(runs.values())
    assert all(found == (kind == "4 bits") for name, found in packed.items() if name not in runs)
