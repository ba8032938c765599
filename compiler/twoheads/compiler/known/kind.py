"""What is said of a decoder's architecture: what its layers hold, and how a capture names and orders it.

A weight is written as its name in a layer and its shape, a letter a dimension:

* ``h`` hidden states, ``i`` the inner width of the product, ``j`` four hidden widths;
* ``q``, ``k`` all heads of queries, of keys (or values), ``f`` queries, keys and values side by side;
* ``d`` a head, ``g`` gate and inner width side by side, ``t`` three hidden widths, ``1`` one;
* ``e`` the experts of a layer, ``x`` the inner width of one, ``y`` two of these, ``s`` that of what all tokens share.

A third word is the type of its numbers, where that is not float32. ``{}`` in a name counts on from layer to layer.

What a region reads is a text as well: ``a`` angles of rotary positions, ``r`` the rows of the layer before, ``o`` what
its attention (or its experts) gave, ``p`` what was computed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twoheads.compiler.frontend.torch.weights.gguf_header import Said

__all__ = ["Convolution", "Gemma", "Kind", "Mixture", "Naming", "Weights"]

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


@dataclass(frozen=True, slots=True)
class Gemma:
    """Scaled embeddings and windows; the head's table is the tokens'.

    Attributes:
        name: Of its architecture.
        period: Of so many layers the last sees all tokens before its own, the others a window of them.
        softcap: Of scores; 0 for none.
        frequencies: Buffers of the rotary embedding: of the layers that see all, and of the others if these differ.
    """

    name: str
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
class Convolution:
    """A gated convolution of a few tokens in place of attention, in layers that have no heads of keys.

    Attributes:
        before: Weights from a layer's input to what is convolved and its gate.
        after: Weights from the convolution to the layer's output.
        sums: Nodes of such a layer that are called ``add``.
        taps: The entry that says of how many tokens it is.
    """

    before: Weights
    after: Weights
    sums: int
    taps: str


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
        convolution: What some layers have in place of attention, or ``None``.
        window: Tokens that all layers see, whatever the file says; 0 for all.
        one_key_head: Whether the library reads one head of keys, whatever the file says.
        others: Entries that it may have besides, which change nothing else in a program.
        fixed: What entries say that it may have besides; a file that says something else is of another model.
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
    convolution: Convolution | None = None
    window: int = 0
    one_key_head: bool = False
    others: tuple[str, ...] = ()
    fixed: Mapping[str, Said] = field(default_factory=dict[str, Said])
