"""What a proof of generating begins with: the prompt, or what an encoder reads and the decoder's first tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.engines.run_inputs import verify_inputs, verify_lengths
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import TOKENS
from twoheads.runtime import LoadedBundle
from twoheads.runtime.generation.context import Context

__all__ = ["Begun", "begin"]

Given: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None"

LENGTH = 300
"""Tokens of a prompt, or of an encoder's, where nobody says how many."""


@dataclass(frozen=True)
class Begun:
    """The beginning of a sequence.

    Attributes:
        prompt: The tokens that are continued.
        context: An empty context, from which others are forked: the encoder runs once.
        source: What the encoder reads, by name, in the shapes of the original; nothing without one.
    """

    prompt: list[int]
    context: Context
    source: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict[str, npt.NDArray[Any]])


def begin(loaded: LoadedBundle, length: int | None, text: str | None, tokens: Given, pages: str | None = None) -> Begun:
    """A sequence's beginning, from what the caller gives.

    Args:
        loaded: The bundle.
        length: Tokens of the prompt, or of the encoder.
        text: What they say.
        tokens: Or what they are; of an encoder also arrays by name.
        pages: As of ``open_context``.

    Raises:
        InputError: As ``verify_inputs``; or arrays are given without an encoder that reads them.
    """
    if isinstance(tokens, Mapping):
        if not loaded.generation.steps.source:
            raise InputError("--generate", "continues one text or token sequence", "leave out --input")
        call = loaded.generation.reader.open(tokens, pages=pages)
        return Begun(call.prompt, call.context, tokens)
    if loaded.generation.steps.source:
        return _behind_encoder(loaded, length, text, tokens, pages)
    return Begun(_prompt(loaded, length, text, tokens), loaded.open_context(pages=pages))


def _prompt(loaded: LoadedBundle, length: int | None, text: str | None, tokens: npt.NDArray[Any] | None) -> list[int]:
    if tokens is not None:
        given = np.asarray(tokens).reshape(-1)[:length]
        return [int(token) for token in given]
    if text is not None:
        return loaded.generation.reader.encode(text, {}, first=True)[0][:length]
    lengths = verify_lengths(loaded.program, LENGTH if length is None else length)
    name = loaded.generation.steps.tokens.value.name
    return [int(token) for token in verify_inputs(loaded, lengths, text=None, tokens=None)[name].reshape(-1)]


def _behind_encoder(
    loaded: LoadedBundle, length: int | None, text: str | None, tokens: npt.NDArray[Any] | None, pages: str | None
) -> Begun:
    program, name = loaded.program, loaded.generation.steps.tokens.value.name
    if text is not None:
        tokens = np.asarray(loaded.generation.reader.encode(text, {}, first=True)[0], np.int64)
    if length is None:
        length = LENGTH if tokens is None else np.asarray(tokens).size
    limits = [limit.length for limit in program.limits if limit.axis != TOKENS]
    lengths = {axis: 1 if axis == TOKENS else count for axis, count in verify_lengths(program, length).items()}
    if text is None and tokens is None:
        lengths = {axis: min(count, *limits) if limits else count for axis, count in lengths.items()}
    source = verify_inputs(
        loaded, lengths, text=None, tokens=None if tokens is None else np.asarray(tokens).reshape(-1)
    )
    del source[name]
    call = loaded.generation.reader.open(source, pages=pages)
    return Begun(call.prompt, call.context, source)
