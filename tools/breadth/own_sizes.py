"""Sizes that one type has of its own: they follow from others, or have names and meanings that no table can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.breadth.image_sizes import IMAGE_SIZES

__all__ = ["HEADS", "own_sizes"]

HEADS = 4

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

_OWN: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE | {"mrope_section": [4, 2, 2]}),
    },
    "dory": {  # its files count attentions and their networks apart
        "num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "sliding_attention", "mlp", "full_attention", "mlp"],
    },
    "blt": {"encoder_hash_byte_group_vocab": 211},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"head_dim": 20, "swa_head_dim": 20},
    "esm": {"pad_token_id": 195, "mask_token_id": 196},
    "esmc": {"num_key_value_heads": HEADS},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16, "input_size": 40},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 32},
    "ministral": {"head_dim": 16},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"true_hidden_size": 32, "embedding_size": 32},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {
        "d_latents": 64, "num_latents": 12, "num_self_attends_per_block": 2, "num_self_attention_heads": HEADS,
        "num_cross_attention_heads": HEADS,
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "rwkv": {"attention_hidden_size": 64},
    "speech_to_text": {"max_source_positions": 256, "pad_token_id": 1, "conv_channels": 32},
    "shieldgemma2": {"yes_token_index": 7, "no_token_index": 8},
    "wav2vec2-bert": {"feature_projection_input_dim": 48},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0},  # the width of queries is a multiple of 64
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Entries by type."""


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
        case "dots3_note" if "adapter_in_dim" in made:
            return {"adapter_in_dim": made["hidden_size"]}
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
