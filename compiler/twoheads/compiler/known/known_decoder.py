"""The block program of a GGUF decoder from its header alone: torch alone takes seconds to load.

Decoders of these architectures have layers of one shape: normed attention, and a product. Files of them
differ in sizes, in biases of the projections, in norms, and in windows of some layers. Their programs are written here
as the capture finds them, to the name; tests compare the two. A file that says what is not read here is captured as
all others are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from twoheads.compiler.frontend.torch.weights.gguf_header import GgufFacts, Said, gguf_facts
from twoheads.compiler.frontend.torch.weights.gguf_positions import otherwise
from twoheads.compiler.known.decoder_program import Decoder, Experts
from twoheads.compiler.known.kind import Kind, Mixture
from twoheads.compiler.known.kinds import BASE, KEY_LENGTH, TURNED, WINDOW, kind_of
from twoheads.compiler.known.known_mamba import Mamba
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

WIDTHS = KEY_LENGTH, "attention.value_length"
"""Entries that say the width of a head once more."""

OTHERS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "vocab_size")
"""Entries that it may have besides; but for the last they change nothing in a program."""

OF_GEMMA = (WINDOW, "rope.scaling.type", "rope.scaling.factor")
"""Entries that a Gemma may have."""

OF_MAMBA = (
    "block_count",
    "context_length",
    "embedding_length",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.conv_kernel",
)
"""Entries of a Mamba's sizes, in the order of :class:`Mamba`."""

NONE_OF_MAMBA = (HEADS, KV_HEADS, "ssm.dt_b_c_rms")
"""Entries of what it has not, heads and a Falcon Mamba's norms: they say 0 or no."""

BESIDE_MAMBA = ("attention.layer_norm_rms_epsilon", "vocab_size", "feed_forward_length")
"""Entries that it may have besides, which change nothing in a program."""

COUNTS = ("expert_count", "expert_used_count")
"""Entries of mixtures: the experts of a layer, and those of a token."""

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


def _decoder(facts: GgufFacts, block: int) -> Decoder | Mamba | None:
    """What a header says, if it is of a known kind and says nothing else."""
    architecture, name = str(facts.entries.get("general.architecture")), str(facts.entries.get("general.name"))
    own = {key: value for key, value in facts.entries.items() if not key.startswith(ASIDE)}
    own = {key.removeprefix(f"{architecture}."): value for key, value in own.items()}
    if architecture == "mamba":
        return _mamba(facts, own, block)
    kind = kind_of(architecture, name, frozenset(facts.tensors))
    if kind is None or otherwise(facts) is not None:
        return None
    if kind.heads_alike:
        own.setdefault(KV_HEADS, own.get(HEADS))
    convolved, taps = _convolutions(own, kind)
    found = [*map(own.get, SIZES), facts.tokens if kind.counted else own.get("vocab_size", facts.tokens)]
    sizes = [size for size in found if type(size) is int and size > 0]
    if len(sizes) < len(found) or own.keys() - _entries(kind) or (kind.counted and "vocab_size" in own):
        return None
    if any(own.get(entry, value) != value for entry, value in kind.fixed.items()):
        return None
    layers, context, hidden, inner, heads, kv_heads, vocabulary = sizes
    head_dim = _width(own, kind.head_dim, hidden // heads)
    turned = _width(own, kind.turned, None) if isinstance(kind.turned, str) else int(head_dim * kind.turned)
    mixed = None if kind.mixture is None else _experts(own, kind.mixture)
    if head_dim < 2 or any(own.get(entry, head_dim) != head_dim for entry in WIDTHS):
        return None
    if own.get(TURNED, turned) != turned or turned % 2 or (kind.turned and not 0 < turned <= head_dim):
        return None
    if layers < 2 or hidden % heads or heads % kv_heads or (kind.heads_alike and kv_heads != heads):
        return None
    if kind.one_key_head and (kv_heads != 1 or heads == 1):
        return None
    if kind.convolution and not (taps and convolved and {*range(1, layers)} - convolved):
        return None
    if not _pads(facts, kind.padding, vocabulary) or (kind.mixture and mixed is None):
        return None
    tied = kind.tied or "output.weight" not in facts.tensors
    window = own.get(WINDOW, kind.window)
    if type(window) is not int or (kind.gemma and not (window > 0 and tied and KEY_LENGTH in own)):
        return None
    if kind.gemma is None:
        window = 0 if WINDOW in own and window >= context else window
    elif layers < kind.gemma.period:
        return None
    widths = context, hidden, inner, heads, kv_heads, head_dim, vocabulary, turned
    return Decoder(kind, block, layers, *widths, window, tied, mixed, convolved, taps)


def _mamba(facts: GgufFacts, own: Mapping[str, Said], block: int) -> Mamba | None:
    """What a Mamba's header says, if it says nothing else."""
    found = [*map(own.get, OF_MAMBA), own.get("vocab_size", facts.tokens)]
    sizes = [size for size in found if type(size) is int and size > 1]
    if len(sizes) < len(found) or own.keys() - {*OF_MAMBA, *NONE_OF_MAMBA, *BESIDE_MAMBA}:
        return None
    if any(own.get(entry) for entry in NONE_OF_MAMBA) or not _pads(facts, 0, sizes[-1]):
        return None
    layers, context, hidden, inner, states, rank, taps, vocabulary = sizes
    tied = "output.weight" not in facts.tensors
    return Mamba(block, layers, context, hidden, inner, states, rank, taps, vocabulary, tied)


def _pads(facts: GgufFacts, otherwise: int, vocabulary: int) -> bool:
    """Whether the token that fills up, ``otherwise`` where the file names none, is one of the vocabulary."""
    padding = facts.entries.get(PADDING, otherwise)
    return type(padding) is int and 0 <= padding < vocabulary


def _entries(kind: Kind) -> set[str]:
    """What a file of ``kind`` may say."""
    found = {*SIZES, *WIDTHS, *OTHERS, *kind.others, *kind.fixed, *(OF_GEMMA if kind.gemma else ())}
    found |= {TURNED, BASE} if kind.turned else set()
    if (mixture := kind.mixture) is not None:
        found |= {*COUNTS, mixture.inner[0], *((mixture.shared[0],) if mixture.shared else ())}
    return found | ({kind.convolution.taps} if kind.convolution else set())


def _convolutions(own: dict[str, Said], kind: Kind) -> tuple[frozenset[int], int]:
    """The layers that have no heads of keys, and the tokens of their convolutions; none where the others differ.

    The entry of these heads is one number then.
    """
    listed = own.get(KV_HEADS)
    if kind.convolution is None or not isinstance(listed, tuple) or len(listed) != own.get("block_count"):
        return frozenset(), 0
    if len({*listed} - {0}) != 1:
        return frozenset(), 0
    own[KV_HEADS] = max(listed)
    return frozenset(at for at, heads in enumerate(listed) if heads == 0), _width(own, kind.convolution.taps, None)


def _width(own: Mapping[str, Said], entry: str | int | None, otherwise: int | None) -> int:
    """What ``entry`` says, or the number that it is, or else ``otherwise``; 0 for what is no width."""
    width = own.get(entry, otherwise) if isinstance(entry, str) else otherwise if entry is None else entry
    return width if type(width) is int and width > 0 else 0


def _experts(own: Mapping[str, Said], mixture: Mixture) -> Experts | None:
    """The sizes of the experts; ``None`` where one is missing or no size."""
    shared = mixture.shared
    sizes = [_width(own, entry, None) for entry in COUNTS]
    sizes += [_width(own, *mixture.inner), 0 if shared is None else _width(own, *shared)]
    found = Experts(*sizes)
    known = 0 < found.chosen <= found.experts and found.inner and bool(found.shared) == (shared is not None)
    return found if known else None
