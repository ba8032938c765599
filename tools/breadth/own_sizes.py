"""Sizes that one type has of its own: they follow from others, or have names and meanings that no table can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.breadth.image_sizes import IMAGE_SIZES

__all__ = ["BY_CLASS", "DEFAULTS", "HEADS", "own_sizes"]

HEADS = 4

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

_SEAMLESS: dict[str, Any] = {
    "speech_encoder_layers": 2, "speech_encoder_attention_heads": HEADS, "speech_encoder_intermediate_size": 96,
}  # fmt: skip

_OWN: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE | {"mrope_section": [4, 2, 2]}),
    },
    "dory": {  # its files count attentions and their networks apart
        "num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "sliding_attention", "mlp", "full_attention", "mlp"],
    },
    "apertus1p5": {"image_token_offset": 100, "audio_token_offset": 132},  # as many apart as its images have codes
    "apertus1p5_vision_tokenizer": {"codebook_size": 32, "latent_channels": 64, "base_channels": 32},
    "blt": {"encoder_hash_byte_group_vocab": 211},
    "bros": {"dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
    "chameleon": {"vocabulary_map": {"<image>": 199, "IMGIMGAZ": 100, "IMGIMGBZ": 101, "IMGIMGCZ": 102}},
    "chameleon_vqgan": {"num_embeddings": 64, "latent_channels": 64, "base_channels": 32},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "n_group": 1, "topk_group": 1},
    "diffusion_gemma_text": {"num_experts": HEADS, "top_k_experts": 2, "moe_intermediate_size": 96},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "dots3_note_text": {"head_dim": 20, "swa_head_dim": 20},
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64},
    "emu3": {"vocabulary_map": {"<image>": 199}},
    "emu3_vqgan": {"codebook_size": 64, "base_channels": 32},
    "ernie4_5_vl_moe_text": {"rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]}},  # as wide in height as in width
    "esm": {"pad_token_id": 195, "mask_token_id": 196},
    "esmc": {"num_key_value_heads": HEADS},
    "fast_vlm": {"vision_feature_layer": -1},
    "glm4v_moe_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
    "glm5_next_text": {"qk_rope_head_dim": 0, "head_dim": 0},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1], "downsample_rate": "1/5",
    },
    "granite_speech5_encoder": {"num_key_value_heads": HEADS},  # its code has a key for every query
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "hy_v4_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}},
    "janus_vqgan": {
        "num_embeddings": 64, "latent_channels": 64, "base_channels": 32, "image_token_embed_dim": 64,
    },
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16, "input_size": 40},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 32},
    "lxmert": {"l_layers": 2, "x_layers": 2, "r_layers": 2, "visual_feat_dim": 32, "num_qa_labels": 7},
    "mimi": {"num_filters": 4, "upsample_groups": 64, "codebook_dim": 64, "vector_quantization_hidden_dimension": 64},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"true_hidden_size": 32, "embedding_size": 32},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {
        "d_latents": 64, "num_latents": 12, "num_self_attends_per_block": 2, "num_self_attention_heads": HEADS,
        "num_cross_attention_heads": HEADS,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
        "indexer_compress_ratio": 8,
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "rwkv": {"attention_hidden_size": 64},
    "seamless_m4t": _SEAMLESS,
    "seamless_m4t_v2": _SEAMLESS,
    "speech_to_text": {"max_source_positions": 256, "pad_token_id": 1, "conv_channels": 32},
    "shieldgemma2": {"yes_token_index": 7, "no_token_index": 8},
    "step3p5": {  # its default layers are of one kind, and its code makes the mask of the other all the same
        "sliding_window": 8, "num_sliding_attention_heads": HEADS,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "t5": {"decoder_start_token_id": 0},
    "unlimited_ocr_text": {"num_key_value_heads": HEADS},  # its code has a key for every query
    "vibevoice_acoustic_tokenizer": {"num_filters": 4, "depths": [1] * 7},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4, "depths": [1] * 7},
    "wav2vec2-bert": {"feature_projection_input_dim": 48},
    "wavtokenizer_encoder": {"num_filters": 4, "codebook_dim": 64, "codebook_size": 32},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0},  # the width of queries is a multiple of 64
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Entries by type."""

BY_CLASS: Mapping[str, Mapping[str, Any]] = {
    "ReformerModelWithLMHead": {"is_decoder": True},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
}
"""Entries that a class asks for, and no other class of its type."""

_NO_OWN_KEYS: Mapping[str, Any] = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma4_assistant": {"text_config": {**_NO_OWN_KEYS, "num_kv_shared_layers": 30}},
}
"""Entries by type without which its default configuration is none that the library takes."""


def own_sizes(made: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of one type's configuration, all of whose other sizes are small already."""
    inner = made.get("hidden_size", 64) * made.get("expand", made.get("mamba_expand", 2))
    match made.get("model_type"):
        case "gemma3n_vision":  # the smallest network of the package timm that gives an image's tokens
            return {"architecture": "test_vit"}
        case "gemma3n_audio":
            return {"conf_num_hidden_layers": 1, "conf_num_attention_heads": HEADS, "input_feat_size": 16}
        case "mamba2":
            return {"head_dim": inner // made["num_heads"], "n_groups": 2}
        case "falcon_h1":
            return {"mamba_d_ssm": made["mamba_n_heads"] * made["mamba_d_head"]}
        case "zamba":
            both = 2 * made["hidden_size"]
            sizes = {"attention_hidden_size": both, "attention_head_dim": both // HEADS, "num_key_value_heads": HEADS}
            kinds = ["linear_attention", "hybrid"] * 2  # hybrid ones share their weights
            return {**sizes, "num_hidden_layers": 4, "layers_block_type": kinds, "mamba_dt_rank": 8}
        case "dbrx":
            return {"attn_config": {**made["attn_config"], "clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0}}
        case "zamba2":
            heads = {"mamba_headdim": inner // made["n_mamba_heads"], "num_query_groups": HEADS}
            both = 2 * made["hidden_size"]
            sizes = {"attention_hidden_size": both, "attention_head_dim": both // HEADS, "num_key_value_heads": HEADS}
            ids = [at for at, kind in enumerate(made["layers_block_type"]) if kind == "hybrid"]
            return {**heads, **sizes, "hybrid_layer_ids": ids}
        case "dia":
            return {"delay_pattern": [0, 1, 2]}  # of three channels
        case "fun_asr_nano":
            return {
                "adaptor_config": {
                    **made["adaptor_config"],
                    "intermediate_size": made["text_config"]["hidden_size"] // 4,
                }
            }
        case "gemma4_assistant":
            text = made["text_config"]
            return {"text_config": {**text, **_NO_OWN_KEYS, "num_kv_shared_layers": text["num_hidden_layers"]}}
        case "nemotron3_diarization":
            return {"head_config": {**made["head_config"], "audio_hidden_size": made["audio_config"]["hidden_size"]}}
        case "timm_wrapper":  # its smallest network
            return {"architecture": "test_vit", "model_args": {"embed_dim": 64}, "hidden_size": 64}
        case "nemotron_h":
            return {"mamba_head_dim": 32, "n_groups": 2}
        case "jamba":
            return {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "mamba_dt_rank": 8}
        case "bamba":
            return {"num_hidden_layers": 2, "attn_layer_indices": [1]}
        case "granitemoehybrid":
            return {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
        case "lfm2" | "lfm2_moe":
            return {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]}
        case kind:
            return {**IMAGE_SIZES.get(str(kind), {}), **_OWN.get(str(kind), {})}
