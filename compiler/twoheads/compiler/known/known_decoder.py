"""The block program of a GGUF decoder from its header alone: torch alone takes seconds to load.

Decoders of these architectures have layers of one shape: normed attention, and a product. Files of them
differ in sizes, in biases of the projections, in norms, and in windows of some layers. Their programs are written here
as the capture finds them, to the name; tests compare the two. A file that says what is not read here is captured as
all others are.
"""

from __future__ import annotations

import struct
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from twoheads.compiler.frontend.torch.weights.gguf_header import GgufFacts, gguf_facts
from twoheads.compiler.known.decoder import Decoder
from twoheads.compiler.known.kinds import KEY_LENGTH, WINDOW, kind_of
from twoheads.graphs.program.program import Program

__all__ = ["known_decoder"]

LIBRARY, READ_BY = "transformers", "5."
"""Whose reading of a header this is, and of which versions."""

HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"

SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    HEADS,
    KV_HEADS,
)
"""Entries of an architecture that every known file has."""

WIDTHS, TURNED = (KEY_LENGTH, "attention.value_length"), "rope.dimension_count"
"""Entries that say the width of a head once more, and that of its part which rotary positions turn."""

OTHERS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "vocab_size")
"""Entries that it may have besides; but for the last they change nothing in a program."""

OF_GEMMA = (WINDOW, "attn_logit_softcapping", "final_logit_softcapping", "rope.scaling.type", "rope.scaling.factor")
"""Entries that a Gemma may have; of these the library reads the first."""

PADDING = "tokenizer.ggml.padding_token_id"

ASIDE = ("general.", "tokenizer.", "quantize.")
"""How entries begin that are not about the model's graph."""


def known_decoder(path: Path, block: int, tile: int) -> Program | None:
    """The program that a capture of ``path`` would give, lowered to tiles; ``None`` where that is not known.

    Args:
        path: A source.
        block: The block size.
        tile: The key tile.
    """
    if path.suffix != ".gguf":
        return None
    try:
        known = version(LIBRARY).startswith(READ_BY)
        decoder = _decoder(gguf_facts(path), block) if known else None
    except (OSError, ValueError, KeyError, struct.error, PackageNotFoundError):  # whoever captures it says why
        return None
    return None if decoder is None else decoder.program(path.stem, tile)


def _decoder(facts: GgufFacts, block: int) -> Decoder | None:
    """What a header says, if it is of a known kind and says nothing else."""
    architecture, name = str(facts.entries.get("general.architecture")), str(facts.entries.get("general.name"))
    kind = kind_of(architecture, frozenset(facts.tensors))
    if kind is None or "mistral" in name.lower():  # the library may read a Llama of that name as another model
        return None
    own = {key: value for key, value in facts.entries.items() if not key.startswith(ASIDE)}
    own = {key.removeprefix(f"{architecture}."): value for key, value in own.items()}
    if kind.heads_alike:
        own.setdefault(KV_HEADS, own.get(HEADS))
    found = [*map(own.get, SIZES), facts.tokens if kind.counted else own.get("vocab_size", facts.tokens)]
    sizes = [size for size in found if type(size) is int and size > 0]
    allowed = {*SIZES, *WIDTHS, TURNED, *OTHERS, *kind.others, *(OF_GEMMA if kind.gemma else ())}
    if len(sizes) < len(found) or own.keys() - allowed or (kind.counted and "vocab_size" in own):
        return None
    layers, context, hidden, inner, heads, kv_heads, vocabulary = sizes
    head_dim: object = hidden // heads if kind.head_dim is None else kind.head_dim
    if isinstance(head_dim, str):
        head_dim = own.get(head_dim, hidden // heads)
    if type(head_dim) is not int or any(own.get(name, head_dim) != head_dim for name in WIDTHS):
        return None
    turned = int(head_dim * kind.turned)
    if own.get(TURNED, head_dim) not in (head_dim, turned):
        return None
    if layers < 2 or hidden % heads or heads % kv_heads or head_dim < 2 or turned % 2 or (kind.turned and not turned):
        return None
    if kind.heads_alike and kv_heads != heads:
        return None
    padding = facts.entries.get(PADDING, kind.padding)
    if type(padding) is not int or not 0 <= padding < vocabulary:
        return None
    tied = kind.tied or "output.weight" not in facts.tensors
    window = own.get(WINDOW, 0)
    if type(window) is not int or (kind.gemma and not (window > 0 and tied and KEY_LENGTH in own)):
        return None
    if kind.gemma and layers < kind.gemma.period:
        return None
    return Decoder(kind, block, layers, context, hidden, inner, heads, kv_heads, head_dim, vocabulary, window, tied)
