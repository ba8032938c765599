"""What ``verify`` runs both sides on: the caller's text or tokens, or a text that every Python installation has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program import Input, Program
from twoheads.runtime import LoadedBundle
from twoheads.runtime.inputs import input_arrays

__all__ = ["logits_positions", "verify_input"]

SEED = 20240229
"""Of random tokens and features, so that two runs of ``verify`` compare the same numbers."""

ALL_LOGITS_BYTES = 1 << 30
"""Logits are compared at all positions while one copy of them takes no more than this."""

SPREAD = 256
"""Evenly spread positions at which longer inputs' logits are compared."""

BORDERS = 256
"""Positions next to block borders that are added to those, at most."""


def verify_input(
    bundle: LoadedBundle, length: int, *, text: str | None, tokens: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """The input ``[length]`` (tokens) or ``[length, width]`` (features).

    Args:
        bundle: Its tokenizer reads the text, its program says what the input looks like.
        length: How many tokens; the first ones of what is given.
        text: Words in the model's language.
        tokens: Or the input itself, ``[N, ...]`` or ``[1, N, ...]``.

    Raises:
        InputError: Both are given, or less than ``length`` tokens, or text without a tokenizer to read it, or tokens
            that the model does not know.
    """
    chosen = _chosen_input(bundle, length, text=text, tokens=tokens)
    input_arrays(bundle.program, chosen)  # the original would fail on what this refuses with a clear error
    return chosen


def _chosen_input(
    bundle: LoadedBundle, length: int, *, text: str | None, tokens: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    if text is not None and tokens is not None:
        raise InputError("verify", "text and tokens are both given", "give one of them")
    entry = _only_argument(bundle.program)
    if tokens is not None:
        given = tokens[0] if tokens.ndim == len(entry.value.shape) and len(tokens) == 1 else tokens
        return _first(given, length, "the input")
    if text is not None:
        if bundle.tokenizer is None:
            raise InputError("text", f"the bundle {bundle.path} has no tokenizer", "give tokens")
        return _first(np.array(bundle.tokenizer.encode(text), np.int64), length, "the text")
    if np.dtype(entry.value.dtype).kind == "f":
        shape = tuple(dim for dim in entry.value.block_shape(length)[1:])
        return np.random.default_rng(SEED).standard_normal(shape).astype(entry.value.dtype)
    return _default_tokens(bundle, entry, length)


def logits_positions(length: int, classes: int, block_size: int) -> npt.NDArray[np.int64] | None:
    """Where logits are compared: ``None`` (everywhere), or ascending positions with the first, the last, borders.

    Args:
        length: Tokens.
        classes: Width of the logits, float32.
        block_size: Both sides of the borders between blocks of this size are among the positions.
    """
    if length * classes * 4 <= ALL_LOGITS_BYTES:
        return None
    spread = np.linspace(0, length - 1, min(SPREAD, length)).round().astype(np.int64)
    borders = np.arange(block_size, length, block_size, dtype=np.int64)
    chosen = np.linspace(0, len(borders) - 1, min(BORDERS // 2, len(borders))).round().astype(np.int64)
    borders = borders[chosen]
    return np.unique(np.concatenate([spread, borders - 1, borders]))


def _only_argument(program: Program) -> Input:
    arguments = [entry for entry in program.inputs if entry.source == "argument"]
    if len(arguments) != 1:
        raise InputError("verify", f"{program.name} takes {len(arguments)} inputs", "only models of one are verified")
    return arguments[0]


def _first(given: npt.NDArray[Any], length: int, what: str) -> npt.NDArray[Any]:
    if len(given) < length:
        raise InputError("length", f"{length} tokens are asked for, and {what} has {len(given)}", "give a longer one")
    return given[:length]


def _default_tokens(bundle: LoadedBundle, entry: Input, length: int) -> npt.NDArray[np.int64]:
    """Python's own language reference; random tokens where there is no tokenizer or too little text."""
    limit = entry.limit if entry.limit is not None else np.iinfo(np.int32).max
    if bundle.tokenizer is not None:
        for text in _texts(length):
            tokens = np.array(bundle.tokenizer.encode(text), np.int64)
            if len(tokens) >= length and int(tokens[:length].max()) < limit:
                return tokens[:length]
    return np.random.default_rng(SEED).integers(0, limit, length, dtype=np.int64)


def _texts(length: int) -> Iterator[str]:
    """The text's beginning, which is enough for nearly every tokenizer, then all of it."""
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics))
    yield whole[: 16 * length + 1000]
    yield whole
