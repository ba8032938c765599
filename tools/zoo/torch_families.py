"""Decoders and encoders of the library, small and random, one for each thing that families differ in."""

from __future__ import annotations

import transformers as hf

from tools.zoo.sizes import DISTILBERT, GPT2, GROUPED, LEARNED, MODERNBERT, NO_TOKENS, PLAIN, T5, family, rope

__all__ = ["BACKBONES"]

_DECODERS = (
    family("Llama", hf.LlamaForCausalLM, hf.LlamaConfig, GROUPED),
    family("Qwen2", hf.Qwen2ForCausalLM, hf.Qwen2Config, GROUPED),
    family("Qwen3", hf.Qwen3ForCausalLM, hf.Qwen3Config, GROUPED, head_dim=8),
    family("Mistral", hf.MistralForCausalLM, hf.MistralConfig, GROUPED, sliding_window=9),
    family("Mixtral", hf.MixtralForCausalLM, hf.MixtralConfig, GROUPED, num_local_experts=4),
    family(
        "Qwen3-MoE",
        hf.Qwen3MoeForCausalLM,
        hf.Qwen3MoeConfig,
        GROUPED,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
    family(
        "Gemma 2, softcap",
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config,
        GROUPED,
        head_dim=8,
        sliding_window=7,
        attn_logit_softcapping=2.0,
    ),
    family(
        "Gemma 3",
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig,
        GROUPED,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    family("Phi-3", hf.Phi3ForCausalLM, hf.Phi3Config, GROUPED, **NO_TOKENS),
    family(
        "GPT-OSS, learned sinks",
        hf.GptOssForCausalLM,
        hf.GptOssConfig,
        GROUPED,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
    ),
    family("SmolLM3", hf.SmolLM3ForCausalLM, hf.SmolLM3Config, GROUPED, **NO_TOKENS, no_rope_layers=[1, 0]),
    family("Granite", hf.GraniteForCausalLM, hf.GraniteConfig, GROUPED),
    family("OLMo 2", hf.Olmo2ForCausalLM, hf.Olmo2Config, GROUPED),
    family("Cohere", hf.CohereForCausalLM, hf.CohereConfig, GROUPED),
    family("StarCoder2", hf.Starcoder2ForCausalLM, hf.Starcoder2Config, GROUPED, sliding_window=8),
    family("StableLM", hf.StableLmForCausalLM, hf.StableLmConfig, GROUPED),
    family("GPT-2", hf.GPT2LMHeadModel, hf.GPT2Config, GPT2),
    family("GPT-NeoX", hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, PLAIN),
    family(
        "OPT",
        hf.OPTForCausalLM,
        hf.OPTConfig,
        NO_TOKENS,
        vocab_size=67,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    ),
    family(
        "Falcon",
        hf.FalconForCausalLM,
        hf.FalconConfig,
        {},
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    family("BLOOM, ALiBi", hf.BloomForCausalLM, hf.BloomConfig, {}, vocab_size=67, hidden_size=32, n_layer=2, n_head=4),
    family("MPT, ALiBi", hf.MptForCausalLM, hf.MptConfig, {}, vocab_size=67, d_model=32, n_layers=2, n_heads=4),
)

_ROPE = (
    family(
        "Llama, dynamic RoPE",
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        GROUPED,
        max_position_embeddings=40,
        rope_parameters=rope("dynamic", factor=2.0),
    ),
    family(
        "Llama 3 RoPE",
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        GROUPED,
        rope_parameters=rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    family(
        "Qwen2, YaRN",
        hf.Qwen2ForCausalLM,
        hf.Qwen2Config,
        GROUPED,
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    family(
        "Phi-3, LongRoPE",
        hf.Phi3ForCausalLM,
        hf.Phi3Config,
        GROUPED,
        **NO_TOKENS,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters=rope(
            "longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[2.0, 3.0, 4.0, 5.0],
            original_max_position_embeddings=32,
        ),
    ),
)

_ENCODERS = (
    family("BERT", hf.BertModel, hf.BertConfig, LEARNED),
    family("RoBERTa", hf.RobertaModel, hf.RobertaConfig, LEARNED),
    family("XLM-RoBERTa", hf.XLMRobertaModel, hf.XLMRobertaConfig, LEARNED),
    family(
        "ModernBERT",
        hf.ModernBertModel,
        hf.ModernBertConfig,
        MODERNBERT,
    ),
    family(
        "DistilBERT",
        hf.DistilBertModel,
        hf.DistilBertConfig,
        DISTILBERT,
    ),
    family("ELECTRA", hf.ElectraModel, hf.ElectraConfig, LEARNED, embedding_size=16),
    family("ALBERT, shared layers", hf.AlbertModel, hf.AlbertConfig, LEARNED, embedding_size=16),
    family("T5 encoder", hf.T5EncoderModel, hf.T5Config, T5),
    family(
        "Longformer, local attention",
        hf.LongformerModel,
        hf.LongformerConfig,
        LEARNED,
        attention_window=[8, 8],
        lengths=(1, 15, 17, 53),
    ),
    family("BigBird, full attention", hf.BigBirdModel, hf.BigBirdConfig, LEARNED, attention_type="original_full"),
    family("BigBird, random blocks beyond its lengths", hf.BigBirdModel, hf.BigBirdConfig, LEARNED),
)

_RECURRENT = (
    family(
        "Mamba",
        hf.MambaForCausalLM,
        hf.MambaConfig,
        {},
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
    ),
)

BACKBONES = (*_DECODERS, *_ROPE, *_ENCODERS, *_RECURRENT)
"""Base models and language models."""
