"""What a caller asks for beside settings, checked before anything is computed: a request may be a stranger's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twoheads.graphs.errors import InputError

__all__ = ["check_asked", "check_prompt"]

TEXT = "give a text"
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "seed": ((int, np.integer), "give a whole number, 0 or more"),
    "ignore_eos": ((bool,), "give true or false"),
    "return_logits": ((bool,), "give true or false"),
    "steady": ((bool,), "give true or false"),
    "json_schema": ((Mapping, str), "give a schema as JSON"),
    "regex": ((str,), TEXT),
    "grammar": ((str,), TEXT),
    "chat": ((Mapping,), "give what the chat template reads, by name"),
}
"""What each may be, if it is given, and what an error says to do."""

CHAT: dict[str, tuple[tuple[type, ...], str]] = {
    "template": ((str,), "give the name of a template, or a template"),
    "tools": ((list, tuple), "give a list of functions"),
    "documents": ((list, tuple), "give a list of texts"),
}


def check_asked(**given: Any) -> None:
    """Refuses what is of another type than :data:`KINDS` says.

    Raises:
        InputError: Names it.
    """
    _check(given, KINDS, "")
    _check(given.get("chat") or {}, CHAT, "chat: ")
    if given.get("seed") is not None and (given["seed"] < 0 or isinstance(given["seed"], bool)):
        raise InputError("seed", f"is {given['seed']!r:.60}", KINDS["seed"][1])


def _check(given: Mapping[str, Any], kinds: Mapping[str, tuple[tuple[type, ...], str]], prefix: str) -> None:
    for name, (types, fix) in kinds.items():
        if given.get(name) is not None and not isinstance(given[name], types):
            raise InputError(f"{prefix}{name}", f"is {given[name]!r:.60}", fix)


def check_prompt(prompt: Any) -> None:
    """Refuses what is neither a text nor a sequence.

    Raises:
        InputError: Says what it is.
    """
    if not isinstance(prompt, str | Sequence | Mapping | np.ndarray) or (
        isinstance(prompt, np.ndarray) and not prompt.ndim
    ):
        raise InputError("prompt", f"is {prompt!r:.60}", "give a text, tokens [N] or messages")
