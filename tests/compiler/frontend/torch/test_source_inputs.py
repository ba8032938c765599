"""Examples of what models of sound and of images read."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf

from twoheads.compiler.frontend.torch.source_inputs import (
    DECODER_LENGTH,
    EXAMPLE_FRAMES,
    EXAMPLE_LENGTH,
    EXAMPLE_SAMPLES,
    attention_layers,
    hugging_face_inputs,
)
from twoheads.graphs.errors import CompileError

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WAVES: dict[str, Any] = SIZES | {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def _lasr() -> Any:
    encoder = {**SIZES, "num_mel_bins": 12, "subsampling_conv_channels": 8, "conv_kernel_size": 4}
    return hf.LasrForCTC(hf.LasrCTCConfig(vocab_size=11, encoder_config=encoder))


def _omniasr() -> Any:
    return hf.OmniASRForCTC(hf.OmniASRCTCConfig(vocab_size=11, audio_config={**WAVES, "model_type": "omniasr_audio"}))


def _pair() -> Any:
    encoder = hf.Wav2Vec2Config(**WAVES)
    decoder = hf.BertConfig(vocab_size=11, **SIZES, is_decoder=True, add_cross_attention=True)
    return hf.SpeechEncoderDecoderModel(hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def _captions() -> Any:
    encoder = hf.ViTConfig(**SIZES, image_size=16, patch_size=8)
    decoder = hf.BertConfig(vocab_size=11, **SIZES, is_decoder=True, add_cross_attention=True)
    return hf.VisionEncoderDecoderModel(hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def _lfm() -> Any:
    vision = hf.Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=4)
    text = hf.Lfm2Config(**SIZES, num_key_value_heads=2, vocab_size=11, layer_types=["full_attention"])
    return hf.Lfm2VlModel(hf.Lfm2VlConfig(vision_config=vision, text_config=text))


def _granite() -> Any:
    encoder = {**SIZES, "num_mel_bins": 12, "num_key_value_heads": 2, "vocab_size": 11}
    return hf.GraniteSpeech5ForCTC(hf.GraniteSpeech5CTCConfig(vocab_size=11, encoder_config=encoder))


def _bros() -> Any:
    return hf.BrosModel(hf.BrosConfig(vocab_size=11, **SIZES))


def _lxmert() -> Any:
    layers = dict.fromkeys(("l_layers", "x_layers", "r_layers"), 1)
    heads = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    return hf.LxmertModel(hf.LxmertConfig(vocab_size=11, **heads, **layers, visual_feat_dim=24))


def _speech2text() -> Any:
    sizes: dict[str, Any] = {
        f"{side}_{size}": value
        for side in ("encoder", "decoder")
        for size, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    return hf.Speech2TextModel(hf.Speech2TextConfig(vocab_size=11, d_model=16, **sizes, input_feat_per_channel=12))


def _vjepa() -> Any:
    predictor = {f"pred_{name}": size for name, size in SIZES.items() if name != "intermediate_size"}
    sizes = {"crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "in_chans": 2, "num_pooler_layers": 1}
    return hf.VJEPA2Model(hf.VJEPA2Config(**SIZES, **predictor, **sizes))


def _kyutai() -> Any:
    codes = {"codebook_vocab_size": 7, "num_codebooks": 3, "audio_pad_token_id": 0}
    config = hf.KyutaiSpeechToTextConfig(**SIZES, vocab_size=11, **codes, ffn_dim=16)
    return hf.KyutaiSpeechToTextModel(config)


SHAPES: dict[str, tuple[Any, str, tuple[int, ...], int | None]] = {
    "frames that are convolved": (_lasr, "input_features", (1, EXAMPLE_FRAMES, 12), 1),
    "a waveform of one channel": (_omniasr, "input_values", (1, 1, EXAMPLE_SAMPLES), 2),
    "frames that were stacked beforehand": (_granite, "input_features", (1, EXAMPLE_FRAMES, 48), 1),
    "places of words on a page": (_bros, "bbox", (1, EXAMPLE_LENGTH, 4), 1),
    "things seen in an image": (_lxmert, "visual_feats", (1, DECODER_LENGTH, 24), 1),
    "places of the things": (_lxmert, "visual_pos", (1, DECODER_LENGTH, 4), 1),
    "frames that convolutions of one axis take": (_speech2text, "input_features", (1, EXAMPLE_FRAMES, 12), 1),
    "an image whose captions a decoder writes": (_captions, "pixel_values", (1, 3, 16, 16), None),
    "text, of a model whose images are patches beside their grid": (_lfm, "input_ids", (1, EXAMPLE_LENGTH), 1),
    "a clip of frames": (_vjepa, "pixel_values_videos", (1, 4, 2, 16, 16), None),
    "a word and its sound's codes": (_kyutai, "input_ids", (1, EXAMPLE_LENGTH, 4), 1),
    "what the encoder of a pair reads": (_pair, "input_values", (1, EXAMPLE_SAMPLES), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_that_of_the_models_own_argument(name: str) -> None:
    make, argument, shape, axis = SHAPES[name]
    found = hugging_face_inputs(name, make())[argument]
    assert (tuple(found.example.shape), found.token_axis) == (shape, axis)


def test_patches_beside_the_shape_of_their_grid_are_refused() -> None:
    config = hf.Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=4)
    with pytest.raises(CompileError, match=r"takes an image as its patches.*spatial_shapes"):
        hugging_face_inputs("siglip2", hf.Siglip2VisionModel(config))


def test_a_number_of_layers_by_towers_promises_nothing() -> None:
    assert attention_layers(_lxmert(), {}) == 0
