"""Makes the configuration of a real model that of a small one: every size that a table knows, in all its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.breadth.own_sizes import HEADS, own_sizes

__all__ = ["ORDINARY", "VOCABULARY", "shrunk"]

VOCABULARY = 211
"""Tokens; those from :data:`ORDINARY` on are special ones."""

ORDINARY = 190

LAYERS, INNER = 2, 96

_NAMES: Mapping[Any, str] = {
    2: """
        altup_num_inputs attn_config.kv_n_heads decoder_layers depth encoder_layers experts_per_token index_n_heads
        index_topk_blocks linear_num_key_heads mamba_num_heads moe_k moe_top_k moe_topk n_head_kv n_layer n_layers
        n_mamba_heads num_expert_group num_experts_per_token
        num_decoder_layers num_encoder_layers num_experts_per_tok num_global_key_value_heads num_hidden_layers
        num_key_value_heads num_kv_heads num_layers num_ngrams num_register_tokens top_k_experts type_vocab_size
    """,
    64: """
        index_topk
        bottleneck_size conv_dim cross_attention_hidden_size d_embed d_model dim emb_dim embed_dim embedding_dim
        embedding_size encoder_hidden_size hidden_dim_text hidden_size lm_hidden_size lru_width model_dim n_embd
        out_hidden_size pooler_hidden_size projection_dim rnn_hidden_size text_hidden_size true_hidden
        true_hidden_size width word_embed_proj_dim
    """,
    96: """
        d_ff d_inner decoder_ffn_dim dense_intermediate_size dim_feedforward encoder_ffn_dim expert_ffn_hidden_size
        ffn_dim ffn_hidden_size hidden_dim intermediate_size intermediate_size_ff intermediate_size_mlp mlp_dim
        moe_ffn_hidden_size moe_intermediate_size moe_shared_expert_intermediate_size n_inner
        projection_hidden_act_size shared_expert_intermediate_size shared_intermediate_size
    """,
    4: """
        attention_heads decoder_attention_heads encoder_attention_heads encoder_num_experts expert_num
        linear_num_heads linear_num_value_heads mamba_n_heads moe_num_experts n_head n_heads n_routed_experts
        num_attention_heads
        num_conv_pos_embedding_groups num_decoder_attention_heads num_encoder_attention_heads num_experts
        num_experts_moe num_heads num_local_experts time_step_rank
    """,
    16: """
        attention_head_dim attention_head_size d_head d_kv global_head_dim head_dim index_block_size index_head_dim
        kv_channels linear_head_dim linear_key_head_dim linear_value_head_dim mamba_d_state
        num_conv_pos_embeddings num_mel_bins
        state_size swa_head_dim swa_v_head_dim
    """,
    8: """
        attention_chunk_size attention_window chunk_size hidden_size_per_layer_input laurel_rank local_attention
        mamba_chunk_size patch_size qk_rope_head_dim rotary_dim sliding_window window_size
    """,
    1: """
        first_k_dense_replace mamba_n_groups n_group n_shared_experts num_dense_layers num_shared_experts topk_group
        zero_expert_num
    """,
    256: """
        max_position_embeddings max_seq_len max_sequence_length max_target_positions n_ctx n_positions
        original_max_position_embeddings seq_length
    """,
    40: """image_size""",
    32: """intra_bottleneck_size mamba_d_head q_lora_rank""",
    0: """moe_layer_start_index num_kv_shared_layers num_mtp_layers num_nextn_predict_layers""",
    211: """decoder_vocab_size vocab_size vocab_size_per_layer_input""",
    12: """qk_nope_head_dim""",
    20: """qk_head_dim v_head_dim""",
    3: """num_channels num_labels""",
    24: """kv_lora_rank""",
    50: """max_source_positions""",
    -1: """vision_feature_layer""",
}
"""Names of entries by their small value."""

_SIZES: Mapping[str, Any] = {name: size for size, names in _NAMES.items() for name in names.split()}

_NEEDED = ("num_experts_per_tok", "n_routed_experts", "vocab_size")
"""Entries that have no default and get a small value too."""

_BY_STAGES = ("out_features", "out_indices", "stage_names")

_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attention_types", "mixer_types")


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration's entries with small sizes.

    Of a list with an entry for every layer, those layers are kept that show every kind once, and two at least.
    """
    counts = (config.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers"))
    layers = next((count for count in counts if count and isinstance(count, int)), 0)  # LXMERT counts by its towers
    kept = _kept_layers(config, layers)
    made: dict[str, Any] = {}
    special = iter(range(ORDINARY, VOCABULARY))
    for name, value in config.items():
        if name in _BY_STAGES:
            continue  # they name stages, which are fewer now
        if name == "per_layer_config" and isinstance(value, Mapping):
            own = {int(at): shrunk(entry) for at, entry in value.items()}
            made[name] = {str(new): own[at] for new, at in enumerate(kept) if at in own}
        elif isinstance(value, Mapping) and (name.endswith("config") or "model_type" in value):
            made[name] = shrunk(value)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, Mapping):
            made[name] = _rope(value)
        elif isinstance(value, list) and layers and len(value) == layers:
            made[name] = [_within(value[at]) for at in kept]
        elif (name.endswith("token_id") and isinstance(value, int)) or (
            name.endswith("token_id") and isinstance(value, list)
        ):
            made[name] = next(special)
        elif (value is not None or name in _NEEDED) and name in _SIZES and not isinstance(value, Mapping):
            small = len(kept) if name in ("num_hidden_layers", "n_layer", "num_layers") and kept else _SIZES[name]
            made[name] = [_SIZES[name]] * len(value) if isinstance(value, list) else small
        else:
            made[name] = value
    if "kv_lora_rank" in made:  # latent attention has as many keys as queries, and rotates a part of each
        made |= {"num_key_value_heads": HEADS} | ({"head_dim": made["qk_rope_head_dim"]} if "head_dim" in made else {})
    return made | own_sizes(made)


def _kept_layers(config: Mapping[str, Any], layers: int) -> list[int]:
    kinds = [tuple(str(config[name][at]) for name in _lists(config, layers)) for at in range(layers)]
    first = sorted({kind: at for at, kind in reversed(list(enumerate(kinds)))}.values())
    return first if len(first) >= LAYERS else list(range(min(layers, LAYERS)))


def _lists(config: Mapping[str, Any], layers: int) -> list[str]:
    return [name for name in _PER_LAYER if isinstance(config.get(name), list) and len(config[name]) == layers]


def _within(value: Any) -> Any:
    return INNER if isinstance(value, int) and not isinstance(value, bool) and value > 512 else value


def _rope(value: Mapping[str, Any]) -> dict[str, Any]:
    made = {name: _rope(entry) if isinstance(entry, Mapping) else entry for name, entry in value.items()}
    if "rope_theta" in made:
        made["mrope_section"] = [4, 2, 2]  # of the models that have three positions; others leave it alone
    if "original_max_position_embeddings" in made:
        made["original_max_position_embeddings"] = 256
    return made
