"""Small random models of the library's own architectures, compiled once and run at any length, against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.families import GROUPED, NO_TOKENS, SIZES, make, with_large_weights
from twoheads.compiler.sources import load_source

FAMILIES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "Llama": make(hf.LlamaForCausalLM, hf.LlamaConfig, **GROUPED),
    "Qwen3": make(hf.Qwen3ForCausalLM, hf.Qwen3Config, **GROUPED, head_dim=8),
    "Mistral, windowed": make(hf.MistralForCausalLM, hf.MistralConfig, **GROUPED, sliding_window=9),
    "Gemma 2, softcap": make(
        hf.Gemma2ForCausalLM, hf.Gemma2Config, **GROUPED, head_dim=8, sliding_window=7, attn_logit_softcapping=2.0
    ),
    "Gemma 3, windowed and full": make(
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig,
        **GROUPED,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "SmolLM3, without RoPE": make(
        hf.SmolLM3ForCausalLM, hf.SmolLM3Config, **GROUPED, **NO_TOKENS, no_rope_layers=[1, 0]
    ),
    "GPT-2": make(
        hf.GPT2LMHeadModel, hf.GPT2Config, vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=128, **NO_TOKENS
    ),
    "OPT": make(
        hf.OPTForCausalLM,
        hf.OPTConfig,
        vocab_size=67,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        **NO_TOKENS,
    ),
    "Falcon": make(
        hf.FalconForCausalLM,
        hf.FalconConfig,
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "Mixtral, experts": make(hf.MixtralForCausalLM, hf.MixtralConfig, **GROUPED, num_local_experts=4),
    "Qwen3-MoE, experts": make(
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig,
        **GROUPED,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
    "BERT": make(hf.BertModel, hf.BertConfig, **SIZES, max_position_embeddings=128),
    "BERT, masked language model": make(hf.BertForMaskedLM, hf.BertConfig, **SIZES, max_position_embeddings=128),
    "ALBERT, shared layers": make(
        hf.AlbertModel, hf.AlbertConfig, **SIZES, embedding_size=16, max_position_embeddings=128
    ),
    "ModernBERT, symmetric window": make(
        hf.ModernBertModel,
        hf.ModernBertConfig,
        **SIZES,
        **NO_TOKENS,
        local_attention=16,
        global_attn_every_n_layers=2,
        cls_token_id=None,
        sep_token_id=None,
    ),
    "T5 encoder, bucketed bias": make(
        hf.T5EncoderModel, hf.T5Config, vocab_size=67, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_agrees_with_torch_at_any_length(name: str, tmp_path: Path) -> None:
    model = with_large_weights(FAMILIES[name])
    bundle, source = bundle_of(model, tmp_path, block_size=16), load_source(model)
    for length in (1, 15, 16, 17, 70, 128):
        assert_agrees(bundle, source, length)
