"""Task heads, encoder-decoders, images, audio windows and row movement, compiled once and run at any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.families import GROUPED, NO_TOKENS, SIZES, make, with_large_weights
from twoheads.compiler.sources import load_source
from twoheads.graphs.program import SequenceStage

LENGTHS = (1, 15, 17, 53)
"""Tokens of inputs in blocks of 16: one, M - 1, M + 1 and 3M + 5."""

SHORT = SIZES | {"max_position_embeddings": 64}
VISION = {key: size for key, size in SIZES.items() if key != "vocab_size"} | {"image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 67, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 67,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER = SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 64}
ORIGINAL = {"max_position_embeddings": 40}
"""Context of the models whose RoPE depends on the length: within ``LENGTHS``."""


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **parameters}}


FAMILIES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "BERT, classes of the input": make(hf.BertForSequenceClassification, hf.BertConfig, **SHORT, num_labels=3),
    "BERT, classes of tokens": make(hf.BertForTokenClassification, hf.BertConfig, **SHORT, num_labels=3),
    "BERT, answers": make(hf.BertForQuestionAnswering, hf.BertConfig, **SHORT),
    "DistilBERT, classes of the input": make(
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig,
        vocab_size=67,
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
    ),
    "RoBERTa": make(hf.RobertaModel, hf.RobertaConfig, **SHORT),
    "RoBERTa, classes of the input": make(hf.RobertaForSequenceClassification, hf.RobertaConfig, **SHORT, num_labels=3),
    "XLM-RoBERTa, masked language model": make(hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig, **SHORT),
    "Llama, class of the last token": make(
        hf.LlamaForSequenceClassification, hf.LlamaConfig, **GROUPED, pad_token_id=0, num_labels=3
    ),
    "Llama, class of the very last token": make(
        hf.LlamaForSequenceClassification, hf.LlamaConfig, **GROUPED, num_labels=3
    ),
    "GPT-2, class of the last token": make(
        hf.GPT2ForSequenceClassification,
        hf.GPT2Config,
        **NO_TOKENS | {"pad_token_id": 0},
        vocab_size=67,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
    ),
    "ModernBERT, classes of the input": make(
        hf.ModernBertForSequenceClassification,
        hf.ModernBertConfig,
        **SIZES,
        **NO_TOKENS,
        local_attention=16,
        global_attn_every_n_layers=2,
        cls_token_id=None,
        sep_token_id=None,
    ),
    "T5": make(hf.T5ForConditionalGeneration, hf.T5Config, **T5),
    "T5 without a head": make(hf.T5Model, hf.T5Config, **T5),
    "BART": make(hf.BartForConditionalGeneration, hf.BartConfig, **SEQ2SEQ, max_position_embeddings=96),
    "Whisper": make(hf.WhisperForConditionalGeneration, hf.WhisperConfig, **WHISPER),
    "Whisper, classes of audio": make(hf.WhisperForAudioClassification, hf.WhisperConfig, **WHISPER),
    "ViT, classes of images": make(hf.ViTForImageClassification, hf.ViTConfig, **VISION),
    "DINOv2": make(hf.Dinov2Model, hf.Dinov2Config, **VISION),
    "CLIP, images": make(hf.CLIPVisionModel, hf.CLIPVisionConfig, **VISION),
    "CLIP, texts": make(hf.CLIPTextModel, hf.CLIPTextConfig, **SHORT, eos_token_id=2),
    "Longformer": make(hf.LongformerModel, hf.LongformerConfig, **SHORT, attention_window=8),
    "Longformer, masked language model": make(
        hf.LongformerForMaskedLM, hf.LongformerConfig, **SHORT, attention_window=8
    ),
    "Llama, dynamic RoPE": make(
        hf.LlamaForCausalLM, hf.LlamaConfig, **GROUPED, **ORIGINAL, **rope("dynamic", factor=2)
    ),
    "Llama, YaRN": make(hf.LlamaForCausalLM, hf.LlamaConfig, **GROUPED, **ORIGINAL, **rope("yarn", factor=2.0)),
    "Phi-3, long RoPE": make(
        hf.Phi3ForCausalLM,
        hf.Phi3Config,
        **GROUPED,
        **NO_TOKENS | {"pad_token_id": 0},
        **rope(
            "longrope",
            original_max_position_embeddings=40,
            long_factor=[4.0, 3.0, 2.0, 1.5],
            short_factor=[1.0, 1.1, 1.2, 1.3],
        ),
        max_position_embeddings=128,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_agrees_with_torch_at_any_length(name: str, tmp_path: Path) -> None:
    model = with_large_weights(FAMILIES[name])
    bundle, source = bundle_of(model, tmp_path, block_size=16), load_source(model)
    for length in reversed(LENGTHS):  # a long input first: nothing of it may stay behind
        assert_agrees(bundle, source, length)


def test_a_pooled_head_runs_once(tmp_path: Path) -> None:
    model = with_large_weights(FAMILIES["BERT, classes of the input"])
    program = bundle_of(model, tmp_path, block_size=16).program
    taken = [stage for stage in program.body if isinstance(stage, SequenceStage)]
    assert [stage.operator for stage in taken] == ["take"]
    assert program.pooled_logits
