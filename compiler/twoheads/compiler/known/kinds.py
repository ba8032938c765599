"""Decoders of GGUF files by architecture; :mod:`~twoheads.compiler.known.kind` tells what a row says."""

from __future__ import annotations

from dataclasses import replace

from twoheads.compiler.known.kind import Convolution, Gemma, Kind, Mixture, Naming, Weights

__all__ = ["BASE", "KEY_LENGTH", "KINDS", "TURNED", "WINDOW", "kind_of"]

KEY_LENGTH, WINDOW = "attention.key_length", "attention.sliding_window"
CAP, LAST_CAP, BASE = "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base"

TURNED = "rope.dimension_count"
"""The entry that says how wide the part of a head is which rotary positions turn."""

OF_GPT = Naming("transformer.h.{}.", "attn", "transformer.wte.weight", "")
OF_BLOOM = Naming("transformer.h.{}.", "self_attention", "transformer.word_embeddings.weight", "")
OF_FALCON = replace(OF_BLOOM, angles="transformer.rotary_emb.")


def _biased(*weights: str) -> Weights:
    """Each weight with the bias behind it, as wide as its first dimension."""
    return tuple(part for weight in weights for part in (weight, _bias(weight, 0)))


def _bias_first(*weights: str) -> Weights:
    """Each weight, whose last dimension is what it gives, behind its bias."""
    return tuple(part for weight in weights for part in (_bias(weight, -1), weight))


def _bias(weight: str, dimension: int) -> str:
    name, shape = weight.split()
    return f"{name.removesuffix('weight')}bias {shape[dimension]}"


BEFORE, BEHIND = "input_layernorm.weight h", "post_attention_layernorm.weight h"
QUERY, KEY, VALUE = "self_attn.q_proj.weight qh", "self_attn.k_proj.weight kh", "self_attn.v_proj.weight kh"
NORMS = ("self_attn.q_norm.weight d", "self_attn.k_norm.weight d")
OUT, LAST = "self_attn.o_proj.weight hq", "model.norm.weight h"
GATED = ("mlp.gate_proj.weight ih", "mlp.up_proj.weight ih", "mlp.down_proj.weight hi")
AFTER = (OUT, BEHIND, *GATED)
OF_GEMMA = (OUT, BEHIND, "pre_feedforward_layernorm.weight h", *GATED, "post_feedforward_layernorm.weight h")

EXPERTS = ("mlp.experts.gate_up_proj eyh", "mlp.experts.down_proj ehx")
SHARED = tuple(
    f"mlp.shared_expert.{part}_proj.weight {shape}" for part, shape in (("gate", "sh"), ("up", "sh"), ("down", "hs"))
)

FORWARD = (
    "ffn_norm.weight h",
    "feed_forward.w1.weight ih",
    "feed_forward.w3.weight ih",
    "feed_forward.w2.weight hi",
)

LLAMA = Kind((BEFORE, QUERY, KEY, VALUE), AFTER, (LAST,), 6, TURNED)

KINDS = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, window=4096),
    "qwen2": Kind((BEFORE, *_biased(QUERY, KEY, VALUE)), AFTER, (LAST,), 6),
    "qwen3": Kind((BEFORE, QUERY, NORMS[0], KEY, NORMS[1], VALUE), AFTER, (LAST,), 8, 128),
    "gemma2": Kind(
        (BEFORE, QUERY, KEY, VALUE),
        OF_GEMMA,
        (LAST,),
        12,
        KEY_LENGTH,
        begins="mul",
        gemma=Gemma("gemma2", 2, 50.0, ("inv_freq",)),
        fixed={CAP: 50.0, LAST_CAP: 30.0},
    ),
    "gemma3": Kind(
        (BEFORE, QUERY, KEY, VALUE, *NORMS),
        OF_GEMMA,
        (LAST,),
        16,
        KEY_LENGTH,
        begins="mul",
        gemma=Gemma("gemma3", 6, 0.0, ("full_attention_inv_freq", "sliding_attention_inv_freq")),
        fixed={CAP: 0.0, LAST_CAP: 0.0},
    ),
    "phi3": Kind(
        (BEFORE, "self_attn.qkv_proj.weight fh"),
        (OUT, BEHIND, "mlp.gate_up_proj.weight gh", "mlp.down_proj.weight hi"),
        (LAST,),
        6,
        padding=32000,
        others=(WINDOW, "rope.scaling.original_context_length"),
    ),
    "starcoder2": Kind(
        _biased(BEFORE, QUERY, KEY, VALUE),
        _biased(OUT, BEHIND, "mlp.c_fc.weight ih", "mlp.c_proj.weight hi"),
        _biased(LAST),
        4,
        reads="aor",
        first_reads="rao",
        counted=True,
    ),
    "nemotron": Kind(
        (*_biased(BEFORE), QUERY, KEY, VALUE),
        (OUT, *_biased(BEHIND), "mlp.up_proj.weight ih", "mlp.down_proj.weight hi"),
        _biased(LAST),
        6,
        turned=0.5,
        reads="aor",
        others=("rope.scaling.type",),
    ),
    "gpt2": Kind(
        (*_biased("ln_1.weight h"), *_bias_first("attn.c_attn.weight hf")),
        (
            *_bias_first("attn.c_proj.weight hh"),
            *_biased("ln_2.weight h"),
            *_bias_first("mlp.c_fc.weight hj", "mlp.c_proj.weight jh"),
        ),
        _biased("transformer.ln_f.weight h"),
        4,
        turned=0,
        operands="kvq",
        reads="or",
        first_reads="ro",
        begins="add_1",
        begins_with=1,
        naming=OF_GPT,
        places=1024,
        heads_alike=True,
        context=False,
        counted=True,
    ),
    "bloom": Kind(
        _biased(BEFORE, "self_attention.query_key_value.weight fh"),
        _biased(
            "self_attention.dense.weight hh",
            BEHIND,
            "mlp.dense_h_to_4h.weight jh",
            "mlp.dense_4h_to_h.weight hj",
        ),
        _biased("transformer.ln_f.weight h"),
        5,
        turned=0,
        operands="qkv",
        reads="or",
        begins="layer_norm",
        tables=_biased("transformer.word_embeddings_layernorm.weight h"),
        naming=OF_BLOOM,
        slope=True,
        heads_alike=True,
        tied=True,
        context=False,
    ),
    "lfm2": Kind(
        (
            "operator_norm.weight h",
            QUERY,
            "self_attn.q_layernorm.weight d",
            KEY,
            "self_attn.k_layernorm.weight d",
            VALUE,
        ),
        ("self_attn.out_proj.weight hq", *FORWARD),
        ("model.embedding_norm.weight h",),
        8,
        convolution=Convolution(
            ("operator_norm.weight h", "conv.in_proj.weight th"),
            ("conv.out_proj.weight hh", *FORWARD),
            4,
            "shortconv.l_cache",
        ),
    ),
    "falcon": Kind(
        (
            *_biased(BEFORE),
            "self_attention.query_key_value.weight fh",
            *("self_attention.lifted_tensor_{} 1 int64",) * 2,
            "mlp.dense_h_to_4h.weight jh",
            "mlp.dense_4h_to_h.weight hj",
        ),
        ("self_attention.dense.weight hh",),
        _biased("transformer.ln_f.weight h"),
        3,
        reads="aopr",
        begins_with=2,
        beside=("matmul", 4, 3),
        naming=OF_FALCON,
        tied=True,
        one_key_head=True,
        others=("tensor_data_layout",),
    ),
    "qwen2moe": Kind(
        (BEFORE, *_biased(QUERY, KEY, VALUE)),
        (OUT, BEHIND, *SHARED, "mlp.gate.weight eh", *EXPERTS, "mlp.shared_expert_gate.weight 1h"),
        (LAST,),
        7,
        mixture=Mixture(
            7, 4, ("expert_feed_forward_length", 1408), ("expert_shared_feed_forward_length", 5632), (13, 15)
        ),
    ),
    "qwen3moe": Kind(
        (BEFORE, QUERY, NORMS[0], KEY, NORMS[1], VALUE),
        (OUT, BEHIND, "mlp.gate.weight eh", *EXPERTS),
        (LAST,),
        8,
        KEY_LENGTH,
        mixture=Mixture(8, 6, ("expert_feed_forward_length", 768)),
    ),
    "minimax-m2": Kind(
        (BEFORE, QUERY, "self_attn.q_norm.weight q", KEY, "self_attn.k_norm.weight k", VALUE),
        (OUT, BEHIND, "mlp.gate.weight eh", "mlp.e_score_correction_bias e", *EXPERTS),
        (LAST,),
        9,
        KEY_LENGTH,
        TURNED,
        mixture=Mixture(9, 6, ("feed_forward_length", None)),
        others=("expert_gating_func", "expert_feed_forward_length"),
    ),
}


def kind_of(architecture: str, name: str, tensors: frozenset[str]) -> Kind | None:
    """The kind of a file's architecture, of which name and tensors may tell more; ``None`` where it is not known."""
    if architecture != "stablelm":  # the library reads a Llama of this name, and of no longer one, as another model
        return KINDS.get("mistral" if (architecture, name) == ("llama", "mistral") else architecture)
    if any("attn_q_norm" in name for name in tensors):  # which the library does not read
        return None
    biased = any(f"attn_{part}.bias" in name for name in tensors for part in "qkv")
    before = (*_biased(BEFORE), *(_biased(QUERY, KEY, VALUE) if biased else (QUERY, KEY, VALUE)))
    if any("ffn_norm" in name for name in tensors):
        kind = Kind(before, (OUT, *_biased(BEHIND), *GATED), _biased(LAST), 4, reads="aor")
    else:  # the product beside the attention
        kind = Kind((*before, *GATED), (OUT,), _biased(LAST), 4, reads="aopr", beside=("linear", 7, 6))
    return replace(kind, turned=0.25, others=("use_parallel_residual",))
