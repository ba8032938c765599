"""Encoders of speech, SeamlessM4T's and SpeechT5's: sinusoids, embeddings of distances, chunks of which one is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from tests.compiler.small_models import captured
from tests.tiers import with_long
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "feature_projection_input_dim": 12, "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 24, "conv_depthwise_kernel_size": 3,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "encoder_layers": 1,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "pad_token_id": 0, "max_position_embeddings": 96,
    "t2u_encoder_layers": 1, "t2u_decoder_layers": 1,
}  # fmt: skip
CHUNK = 90


def _first() -> Any:
    return hf.SeamlessM4TForSpeechToText(hf.SeamlessM4TConfig(**SIZES, max_source_positions=128))


def _second() -> Any:
    places: dict[str, Any] = {"left_max_position_embeddings": 6, "right_max_position_embeddings": 3}
    return hf.SeamlessM4Tv2ForSpeechToText(hf.SeamlessM4Tv2Config(**SIZES, **places, speech_encoder_chunk_size=CHUNK))


def _speecht5() -> Any:
    encoder: dict[str, Any] = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
    decoder: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    sound: dict[str, Any] = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    places: dict[str, Any] = {"encoder_max_relative_position": 5, "max_text_positions": 96}
    config = hf.SpeechT5Config(vocab_size=40, hidden_size=32, **encoder, **decoder, **sound, **places)
    return hf.SpeechT5ForSpeechToText(config)


@pytest.mark.parametrize(
    ("make", "limits"),
    with_long(
        [(_first, []), (_second, [CHUNK]), (_speecht5, [])],
        [(_second, [CHUNK]), (_speecht5, [])],
    ),
    ids=["first", "second", "speecht5"],
)
def test_speech_and_the_tokens_of_its_translation(make: Any, limits: list[int]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    source = load_source(model)
    found = captured(model)
    assert [limit.length for limit in found.graph.limits] == limits
    prove_capture(source, found)
