"""Models of waveforms and spectrograms run as the library runs them, with strided convolutions and norms over time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WAVES: dict[str, Any] = SIZES | {
    "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

MODELS: dict[str, Callable[[], Any]] = {
    "a norm over all samples, CTC": lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WAVES, vocab_size=32)),
    "a norm of each row": lambda: hf.HubertModel(
        hf.HubertConfig(**WAVES, feat_extract_norm="layer", do_stable_layer_norm=True)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_waveform_of_any_length(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    bundle = load(path)
    for samples in (60, 1000, 2001):
        wave = np.random.default_rng(samples).standard_normal((1, samples)).astype(np.float32)
        with torch.no_grad():
            want = model(torch.from_numpy(wave))[0][0].numpy()
        result = bundle.run({"input_values": wave}, output="logits" if "CTC" in name else "hidden")
        assert result.array is not None
        np.testing.assert_allclose(result.array, want, rtol=0, atol=5e-6 * np.abs(want).max())
        assert result.report.engine_calls == result.report.formula_calls
    assert verify(path, model, length=1000).passed


def test_a_spectrogram_of_one_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.ASTModel(hf.ASTConfig(**SIZES, max_length=64, num_mel_bins=32)).eval()
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    assert verify(path, model).passed


def test_a_configuration_that_says_too_little_is_refused() -> None:
    model = hf.ASTModel(hf.ASTConfig(**SIZES, max_length=64, num_mel_bins=32)).eval()
    model.config.max_length = 0
    with pytest.raises(CompileError, match="does not say max_length"):
        compile_model(model, block_size=16)
