"""Models of waveforms and spectrograms run as the library runs them, with strided convolutions and norms over time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError, InputError
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


@pytest.mark.parametrize("name", with_long(MODELS, ["a norm over all samples, CTC"]))
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


def test_a_spectrogram_of_any_length_by_convolutions_of_two_axes(tmp_path: Path) -> None:
    """Parakeet: bins and frames are convolved together, and Conformers attend by relative positions."""
    torch.manual_seed(0)
    sizes = SIZES | {
        "num_key_value_heads": 4,
        "num_mel_bins": 16,
        "subsampling_conv_channels": 8,
        "conv_kernel_size": 5,
    }
    encoder = sizes | {"subsampling_factor": 4, "num_hidden_layers": 1}
    model = hf.ParakeetForCTC(hf.ParakeetCTCConfig(vocab_size=32, pad_token_id=0, encoder_config=encoder)).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm1d) and part.running_mean is not None:
            torch.nn.init.normal_(part.running_mean)
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    bundle = load(path)
    for frames in (1, 64, 67, 239):
        given = np.random.default_rng(frames).standard_normal((1, frames, 16)).astype(np.float32)
        with torch.no_grad():
            want = model(torch.from_numpy(given)).logits[0].numpy()
        got = bundle.run({"input_features": given}, output="logits").array
        assert got is not None
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())


@pytest.mark.long(
    "test_a_waveform_of_any_length",
    "tests/compiler/frontend/torch/hugging_face/layers/test_relative_positions.py",
)
def test_a_waveform_and_the_tokens_of_its_decoder(tmp_path: Path) -> None:
    """Moonshine whole: samples on one axis, tokens on the other."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {f"{side}_num_hidden_layers": 1 for side in ("encoder", "decoder")}
    heads: dict[str, Any] = {f"{side}_num_attention_heads": 4 for side in ("encoder", "decoder")}
    config = hf.MoonshineConfig(vocab_size=67, hidden_size=32, intermediate_size=64, **layers, **heads)
    model = hf.MoonshineForConditionalGeneration(config).eval()
    bundle = load(write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False))
    for samples, tokens in ((895, 1), (9000, 17)):
        draw = np.random.default_rng(samples)
        given = {
            "input_values": draw.standard_normal((1, samples)).astype(np.float32),
            "decoder_input_ids": draw.integers(0, 67, (1, tokens)),
        }
        with torch.no_grad():
            want = model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits[0].numpy()
        got = bundle.run(given, output="logits").array
        assert got is not None
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())


def test_a_word_and_the_codes_of_its_sound_at_every_step(tmp_path: Path) -> None:
    """Kyutai's transcriber: each column has rows of its own in one table, and there are more words than codes."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"vocab_size": 41, "codebook_vocab_size": 7, "num_codebooks": 3, "ffn_dim": 48}
    config = hf.KyutaiSpeechToTextConfig(**SIZES | {"num_hidden_layers": 1}, **own, audio_pad_token_id=62)
    model = hf.KyutaiSpeechToTextModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    draw = np.random.default_rng(0)
    ids = np.concatenate([draw.integers(0, 41, (1, 21, 1)), draw.integers(0, 7, (1, 21, 3))], -1)
    ids[0, 3, 1:] = 62  # no sound
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).last_hidden_state[0].numpy()
    got = load(path).run({"input_ids": ids}, output="hidden").array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
    assert verify(path, model, length=17).passed
    with pytest.raises(InputError, match="says one number a token, and input_ids has several"):
        verify(path, model, text="a word")


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
