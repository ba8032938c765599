"""Decoders of GGUF files by architecture: what their layers hold, and how a capture names and orders it.

A weight is written as its name in a layer and its shape, a letter a dimension:

* ``h`` hidden states, ``i`` the inner width of the product, ``j`` four hidden widths;
* ``q``, ``k`` all heads of queries, of keys (or values), ``f`` queries, keys and values side by side;
* ``d`` a head, ``g`` gate and inner width side by side, ``1`` one;
* ``e`` the experts of a layer, ``x`` the inner width of one, ``y`` two of these, ``s`` that of what all tokens share.

A third word is the type of its numbers, where that is not float32. ``{}`` in a name counts on from layer to layer.

What a region reads is a text as well: ``a`` angles of rotary positions, ``r`` the rows of the layer before, ``o`` what
its attention (or its experts) gave, ``p`` what was computed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["GEMMA_SCALE", "KEY_LENGTH", "KINDS", "TURNED", "WINDOW", "Gemma", "Kind", "Mixture", "Naming", "kind_of"]

KEY_LENGTH, WINDOW = "attention.key_length", "attention.sliding_window"

TURNED = "rope.dimension_count"
"""The entry that says how wide the part of a head is which rotary positions turn."""

GEMMA_SCALE = 256**-0.5
"""What the library multiplies the scores of any Gemma with that is read from a header."""

Weights = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Naming:
    """What a capture calls the parts of a model.

    Attributes:
        layer: In front of a layer's weights, with ``{}`` for its number.
        attention: The module of attention in a layer.
        table: The table of tokens, unless the head's is the same.
        angles: In front of the buffers of the rotary embedding.
    """

    layer: str = "model.layers.{}."
    attention: str = "self_attn"
    table: str = "model.embed_tokens.weight"
    angles: str = "model.rotary_emb."


OF_GPT = Naming("transformer.h.{}.", "attn", "transformer.wte.weight", "")
OF_BLOOM = Naming("transformer.h.{}.", "self_attention", "transformer.word_embeddings.weight", "")
OF_FALCON = replace(OF_BLOOM, angles="transformer.rotary_emb.")


@dataclass(frozen=True, slots=True)
class Gemma:
    """Scaled embeddings and windows; the head's table is the tokens'.

    Attributes:
        period: Of so many layers the last sees all tokens before its own, the others a window of them.
        softcap: Of scores; 0 for none.
        frequencies: Buffers of the rotary embedding: of the layers that see all, and of the others if these differ.
    """

    period: int
    softcap: float
    frequencies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Experts of a layer, of which each token takes some: gated by ``silu``, gate and inner width side by side.

    Where they are gathered by expert they stand between two regions; where that costs more, within one.

    Attributes:
        sums: Nodes of a captured layer that are called ``add``, where they are gathered; else each adds one.
        before: Of these, how many come before the experts.
        beside: Of nodes called ``mul`` in a layer their number, and which one is computed beside the experts; or
            ``None``.
        inner: The entry that says the inner width of one, and what the library takes where a file says nothing.
        shared: The same of what all tokens share; ``None`` where there is none.
    """

    sums: int
    before: int
    inner: tuple[str, int | None]
    shared: tuple[str, int] | None = None
    beside: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """An architecture.

    Attributes:
        before: Weights from a layer's input to its queries, keys and values, and of what is computed beside these.
        after: Weights from its attention to its output.
        last: Weights behind the last layer, without the layer's name.
        sums: Nodes of a captured layer that are called ``add``.
        head_dim: The entry that says the width of a head, or the width that the library takes whatever the file says;
            where there is neither, the width of the hidden states is divided by the heads.
        turned: The share of a head that rotary positions turn, or the entry that says how wide it is; 0 without them.
        operands: The order in which a region gives queries, keys and values.
        reads: What a region reads of the one before it, in order.
        first_reads: What the second region reads, where that is another order.
        begins: The node that gives the first region's rows.
        begins_with: Nodes called ``add`` before the first layer.
        tables: Weights that are read for the first rows, beside the table of tokens.
        beside: What nodes are called of which one is computed beside the attention, their number in a layer, and which
            one it is; or ``None``.
        naming: What it calls its parts.
        places: Rows of a learned table of positions, whatever the file says; 0 without one.
        slope: Scores have a bias by distance.
        tied: The head's table is the tokens' whatever the file says.
        context: Whether the library reads the context that the model was trained on.
        heads_alike: Whether there are as many heads of keys as of queries, and a file need not say so.
        counted: Whether the library counts the vocabulary's tokens, and reads no entry that says how many there are.
        padding: The token that fills up, where a file names none; it is one of the vocabulary.
        gemma: What its layers have besides, or ``None``.
        mixture: The experts of its layers, or ``None``.
        window: Tokens that all layers see, whatever the file says; 0 for all.
        one_key_head: Whether the library reads one head of keys, whatever the file says.
        others: Entries that it may have besides, which the library does not read.
    """

    before: Weights
    after: Weights
    last: Weights
    sums: int
    head_dim: str | int | None = None
    turned: float | str = 1.0
    operands: str = "vqk"
    reads: str = "aro"
    first_reads: str | None = None
    begins: str = "embedding"
    begins_with: int = 0
    tables: Weights = ()
    beside: tuple[str, int, int] | None = None
    naming: Naming = Naming()
    places: int = 0
    slope: bool = False
    tied: bool = False
    context: bool = True
    heads_alike: bool = False
    counted: bool = False
    padding: int = 0
    gemma: Gemma | None = None
    mixture: Mixture | None = None
    window: int = 0
    one_key_head: bool = False
    others: tuple[str, ...] = ()


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
        gemma=Gemma(2, 50.0, ("inv_freq",)),
    ),
    "gemma3": Kind(
        (BEFORE, QUERY, KEY, VALUE, *NORMS),
        OF_GEMMA,
        (LAST,),
        16,
        KEY_LENGTH,
        begins="mul",
        gemma=Gemma(6, 0.0, ("full_attention_inv_freq", "sliding_attention_inv_freq")),
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
            7, 4, ("expert_feed_forward_length", 1408), ("expert_shared_feed_forward_length", 5632), (10, 15)
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
