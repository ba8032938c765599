"""The tokenizer of a GGUF file, with text cut as the vocabulary's merges were learned.

A file names how text is cut before it is merged (``tokenizer.ggml.pre``). The library knows some of these names and
cuts as GPT-2 does for all others, without a word: SmolLM2 gets other tokens of a line break before a number then. More
names are known here; of a name that nobody knows there is no tokenizer. Ways to cut are facts of the models, and
llama.cpp's (``src/llama-vocab.cpp``) of the same names were compared with these, text by text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twoheads.compiler.frontend.torch.weights.gguf_header import gguf_facts

__all__ = ["file_tokenizer"]

logger = logging.getLogger(__name__)

KIND, CUT, PREFIX = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"

BYTES, PIECES = "gpt2", "llama"
"""Kinds of vocabularies: of bytes, and of pieces of sentences."""

AS_GPT2 = frozenset({"gpt-2", "granite-docling", "jais", "mpt", "olmo", "phi-2", "trillion"})
"""Names for what the library does where it does not know a name."""

OWN = "gpt2"
"""The architecture whose files need not say it."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PUNCTUATION, THREE = r"[\p{P}\$\+<=>\^~\|`]+", "[0-9][0-9][0-9]"
WORDS = r" ?[^(\s|.,!?…。\x{FF0C}、।\x{06D4}،)]+"
CODE = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
"""What is a piece of its own: as GPT-2 has it, Falcon (with the former between the two), BLOOM, and DeepSeek Coder."""

WHOLE = frozenset(
    {
        "falcon-h1",
        "falcon3",
        "jina-v5-nano",
        "lfm2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "midm-2.0",
        "pixtral",
        "tekken",
    }
)
"""Names of vocabularies in which a piece that is a token is that token, whatever merges would make of it."""

DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
"""Names for one piece a digit, and the rest as GPT-2 does."""

ALIKE = {"hunyuan": "qwen2", "solar-open": "qwen2", "stablelm2": "qwen2"}
"""Names for what the library does under another one."""


def file_tokenizer(path: Path, options: Mapping[str, Any]) -> Any | None:
    """The transformers tokenizer of a GGUF file; ``None``, and a warning, where it cuts text in an unknown way.

    Args:
        path: The file.
        options: Of the library's ``from_pretrained``.

    Raises:
        ValueError, KeyError, OSError: The library can't make one of the file.
    """
    from transformers import AutoTokenizer

    entries = gguf_facts(path).entries
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **options)
    backend, kind, name = tokenizer.backend_tokenizer, entries.get(KIND), entries.get(CUT)
    if kind == PIECES and entries.get(PREFIX) is False:
        _without_prefix(backend)
    if kind == BYTES and name in WHOLE:
        model = backend.model
        model.ignore_merges = True
        backend.model = model
    if kind != BYTES or name in _known_to_library() or name in AS_GPT2:
        return tokenizer
    if name is None and entries.get("general.architecture") == OWN:
        return tokenizer
    if (cutter := _cutter(str(name))) is None:
        message = (
            "%s: cuts text in a way that is not known here (%s: %s): the bundle gets no tokenizer, and takes tokens; "
            "compile the model's Hugging Face folder, or with a newer transformers"
        )
        logger.warning(message, path, CUT, name)
        return None
    backend.pre_tokenizer = cutter
    return tokenizer


def _known_to_library() -> Mapping[str, str]:
    """By name, the expression that the library cuts by; none of a release that does not tell."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping
    except ImportError:
        return {}
    found: Mapping[str, str] = getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", {})
    return found


def _cutter(name: str) -> Any | None:
    """What cuts text as files of this name want it; ``None`` for a name that is not known."""
    from tokenizers import Regex, pre_tokenizers

    def steps(*expressions: str, words: bool = False) -> Any:
        cuts = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)])

    known: Mapping[str, Callable[[], Any]] = {
        **dict.fromkeys(DIGITS, lambda: steps(r"\p{N}", words=True)),
        **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), lambda: steps(WORDS)),
        "deepseek-coder": lambda: steps(*CODE),
        "falcon": lambda: steps(PUNCTUATION, GPT2, THREE),
    }
    if name in known:
        return known[name]()
    expression = _known_to_library().get(ALIKE.get(name, ""))
    return None if expression is None else steps(expression)


def _without_prefix(backend: Any) -> None:
    """No space is put in front of a text, and none is taken away from one."""
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
