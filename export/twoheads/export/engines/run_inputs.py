"""What ``verify`` runs both sides on: the caller's text or tokens, or a text that every Python installation has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes, resolve_lengths, value_rows
from twoheads.graphs.program.program import Input, Program, SequenceStage
from twoheads.graphs.program.sequence_operators import sought_tokens
from twoheads.runtime import LoadedBundle
from twoheads.runtime.inputs.arrays import given_arrays

__all__ = ["logits_positions", "verify_input", "verify_inputs", "verify_lengths", "whole_length"]

SEED = 20240229
"""Of random tokens and features, so that two runs of ``verify`` compare the same numbers."""

ALL_LOGITS_BYTES = 1 << 30
"""Logits are compared at all positions while one copy of them takes no more than this."""

SPREAD = 256
"""Evenly spread positions at which longer inputs' logits are compared."""

BORDERS = 256
"""Positions next to block borders that are added to those, at most."""


def verify_lengths(program: Program, length: int | Mapping[str, int]) -> dict[str, int]:
    """The length of every input axis; one number is meant for all of them.

    Raises:
        InputError: A length is missing or wrong, or not the only one that the model takes.
    """
    axes = input_axes(program)
    several = isinstance(length, int) and len(axes) > 1
    return resolve_lengths(program, dict.fromkeys(axes, length) if several else length)  # type: ignore[arg-type]


def whole_length(
    bundle: LoadedBundle, text: str | None, tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None
) -> int | Mapping[str, int]:
    """The length of all that is given; empty where nothing is, which is right for inputs of a fixed size."""
    if isinstance(tokens, Mapping):
        return given_arrays(bundle.program, tokens)[0]
    if tokens is not None:
        entry = _arguments(bundle.program)[0]
        batch = tokens.ndim == len(entry.value.shape) and len(tokens) == 1
        return {} if entry.value.axis is None else tokens.shape[batch]
    fixed = _arguments(bundle.program)[0].value.axis is None
    return {} if text is None or fixed else len(_encode(bundle, text))


def verify_inputs(
    bundle: LoadedBundle,
    lengths: Mapping[str, int],
    *,
    text: str | None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
) -> dict[str, npt.NDArray[Any]]:
    """An array for every argument, shaped as its value.

    Args:
        bundle: Its program says what the inputs look like.
        lengths: Of the input axes.
        text: What the first argument of token numbers says; the others are random, as images and features are.
        tokens: Or the first argument itself; or all arguments by name.

    Raises:
        InputError: As :func:`verify_input`; or an argument is missing, or of another length.
    """
    program = bundle.program
    if isinstance(tokens, Mapping):
        found, arrays = given_arrays(program, tokens)
        if found != lengths:
            raise InputError(
                "length", f"is {dict(lengths)}, and the arrays have {found}", "give the arrays' own length"
            )
        return arrays
    main, *others = _arguments(program)
    rows = prod(main.value.block_shape(0)) if main.value.axis is None else value_rows(main.value, lengths)
    first = verify_input(bundle, rows, text=text, tokens=tokens)
    made = {main.value.name: first.reshape(_shape(main, lengths))}
    made |= {entry.value.name: _random(entry, _shape(entry, lengths)) for entry in others}
    given_arrays(program, made)  # the original would fail on what this refuses with a clear error
    return made


def verify_input(
    bundle: LoadedBundle, length: int, *, text: str | None, tokens: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """The first argument: ``[length]`` (tokens), ``[length, width]`` (features), or all of an input of fixed size.

    Args:
        bundle: Its tokenizer reads the text, its program says what the input looks like.
        length: How many tokens; the first ones of what is given.
        text: Words in the model's language.
        tokens: Or the input itself, ``[N, ...]`` or ``[1, N, ...]``.

    Raises:
        InputError: Both are given, or less than ``length`` tokens, or text without a tokenizer to read it, or for a
            model that reads several numbers a token, or tokens that the model does not know.
    """
    if text is not None and tokens is not None:
        raise InputError("verify", "text and tokens are both given", "give one of them")
    entry = _arguments(bundle.program)[0]
    if tokens is not None:
        if entry.value.axis is None:
            return tokens
        given = tokens[0] if tokens.ndim == len(entry.value.shape) and len(tokens) == 1 else tokens
        return _first(given, length, "the input")
    if text is not None:
        return _first(_encode(bundle, text), length, "the text")
    if entry.value.axis is None:
        return _random(entry, entry.value.block_shape(0))
    if np.dtype(entry.value.dtype).kind == "f" or _several(entry):
        shape = entry.value.block_shape(length)
        return _random(entry, shape[1:] if shape[0] == 1 else shape)
    return _default_tokens(bundle, entry, length)


def _encode(bundle: LoadedBundle, text: str) -> npt.NDArray[np.int64]:
    entry = _arguments(bundle.program)[0]
    if _several(entry):
        raise InputError("text", f"says one number a token, and {entry.value.name} has several", "give tokens")
    if bundle.tokenizer is None:
        raise InputError("text", f"the bundle {bundle.path} has no tokenizer", "give tokens")
    return np.array(bundle.tokenizer.encode(text), np.int64)


def _several(entry: Input) -> bool:
    """Whether a token is several numbers: a word and the codes of its sound, or its place in an image."""
    return len(entry.value.shape) > 2


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


def _arguments(program: Program) -> list[Input]:
    """The arguments, the first that takes token numbers in front."""
    arguments = [entry for entry in program.inputs if entry.source == "argument"]
    return sorted(arguments, key=lambda entry: np.dtype(entry.value.dtype).kind == "f")


def _shape(entry: Input, lengths: Mapping[str, int]) -> tuple[int, ...]:
    return entry.value.block_shape(value_rows(entry.value, lengths))


def _random(entry: Input, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    generator = np.random.default_rng(SEED)
    if np.dtype(entry.value.dtype).kind == "f":
        return generator.standard_normal(shape).astype(entry.value.dtype)
    return generator.integers(0, entry.limit or 2, shape).astype(entry.value.dtype)


def _first(given: npt.NDArray[Any], length: int, what: str) -> npt.NDArray[Any]:
    if len(given) < length:
        raise InputError("length", f"{length} tokens are asked for, and {what} has {len(given)}", "give a longer one")
    return given[:length]


def _default_tokens(bundle: LoadedBundle, entry: Input, length: int) -> npt.NDArray[np.int64]:
    """Python's own language reference; random tokens where there is no tokenizer or too little text.

    The last one is a token that the program looks for, if it does.
    """
    tokens = _made_up(bundle, entry, length)
    sought = sought_tokens(stage for stage in bundle.program.body if isinstance(stage, SequenceStage))
    if entry.value.name in sought:
        tokens = np.append(tokens[:-1], sought[entry.value.name])
    return tokens


def _made_up(bundle: LoadedBundle, entry: Input, length: int) -> npt.NDArray[np.int64]:
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
