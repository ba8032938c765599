"""Output that keeps to a JSON schema, a regular expression or a grammar: what can't follow has no probability."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.choosing.processors import LogitsProcessor, Scores

__all__ = ["Constraint", "read_constraint"]


class Constraint:
    """A grammar, ready to be followed.

    Args:
        grammar: In llguidance's own form.
        tokenizer: The bundle's ``tokenizer.json``.
        ends: Tokens that end a text.

    Raises:
        InputError: The package llguidance is not installed, it can't read the tokenizer, or the grammar is none.
    """

    def __init__(self, grammar: str, tokenizer: Path, ends: Sequence[int]) -> None:
        if not ends:
            raise InputError("a constraint", "has an end, and no token ends a text here", "give eos_token_id")
        self._grammar, self._tokenizer, self._ends = grammar, str(tokenizer), tuple(ends)
        error = _module().LLMatcher.validate_grammar(grammar, None)
        if error:
            raise InputError("a constraint", f"is no grammar: {_line(error)}", "repair it")

    def processor(self, prompt: int) -> LogitsProcessor:
        """What follows it behind a prompt of so many tokens; for one sequence."""
        seen, matcher = prompt, None

        def process(tokens: Sequence[int], scores: Scores) -> Scores:
            nonlocal seen, matcher
            if matcher is None:
                matcher = _module().LLMatcher(_tokenizer(self._tokenizer, len(scores), self._ends), self._grammar)
            matcher.consume_tokens([int(token) for token in tokens[seen:]])
            seen = len(tokens)
            bits = np.zeros(-(-len(scores) // 32), np.int32)
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            if matcher.is_error():
                found = _line(matcher.get_error()).partition(" <state>")[0]  # what follows is llguidance's own state
                why = "it allows no token" if found.startswith(NOTHING_LEFT) else found
                raise InputError("a constraint", f"can't be followed behind {len(tokens)} tokens: {why}", "loosen it")
            allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(scores)].astype(np.bool_)
            return np.where(allowed, scores, np.float32(-np.inf))

        return process


def read_constraint(
    *,
    json_schema: Mapping[str, Any] | str | None,
    regex: str | None,
    grammar: str | None,
    tokenizer: Path | None,
    ends: Sequence[int],
) -> Constraint | None:
    """The constraint that is asked for, if one is.

    Args:
        json_schema: Of a JSON text; as a mapping, or as JSON.
        regex: A regular expression of the whole text.
        grammar: A grammar in the form of Lark.
        tokenizer: The bundle's file.
        ends: Tokens that end a text.

    Raises:
        InputError: Several are given, one is none, or the bundle has no tokenizer.
    """
    given = [text for text in (json_schema, regex, grammar) if text is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InputError("a constraint", "is given twice", "give one of json_schema, regex and grammar")
    if tokenizer is None:
        raise InputError("a constraint", "is about text, and the bundle has no tokenizer", "leave it out")
    matcher = _module().LLMatcher
    try:
        if json_schema is not None:
            text = json_schema if isinstance(json_schema, str) else json.dumps(dict(json_schema))
            made = matcher.grammar_from_json_schema(text)
        else:
            made = matcher.grammar_from_regex(regex) if regex is not None else matcher.grammar_from_lark(grammar)
    except ValueError as error:
        raise InputError("a constraint", f"is none: {_line(error)}", "repair it") from error
    return Constraint(made, tokenizer, ends)


def _module() -> Any:
    try:
        import llguidance
    except ImportError as error:
        fix = 'pip install "twoheads[constrained]"'
        raise InputError("a constraint", "needs the package llguidance, which is not installed", fix) from error
    return llguidance


@lru_cache(maxsize=2)
def _tokenizer(path: str, classes: int, ends: tuple[int, ...]) -> Any:
    """Reading it takes seconds: it is kept.

    Raises:
        InputError: The package can't read it.
    """
    try:
        return _module().LLTokenizer(path, n_vocab=classes, eos_token=list(ends))
    except Exception as error:  # the package raises what its Rust code gives
        raise InputError("a constraint", f"can't be had with this tokenizer: {_line(error)}", "leave it out") from error


NOTHING_LEFT = "NoExtension"
"""What llguidance says where nothing may come."""


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
