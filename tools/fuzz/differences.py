"""By which rule a mutant may give another answer without an error: one for each thing that only a signature notices.

A difference that no rule explains is a fault. What a mutant changed is read off its file, not taken from the mutator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tools.fuzz.judge import Verdict
from tools.fuzz.mutate.sealed import unseal

__all__ = ["changed_places", "explained", "places_of"]

_STAGE = r"(body|head)\.\*"

PROGRAM = (
    (r"body\.\*\.mask", "the mask of an attention"),
    (r"body\.\*\.(query|key|value)", "which values an attention reads"),
    (rf"{_STAGE}\.inputs(\.\*)?", "which values a stage reads"),
    (rf"{_STAGE}\.weights(\.\*)?", "which weights of one shape a stage reads"),
    (rf"{_STAGE}\.outputs(\.\*\.name)?", "which value of one shape a result becomes"),
    (r"body", "the stages"),
    (r"hidden|logits", "which value is the result"),
    (r"pooling.*", "how an embedding is made"),
    (r"inputs\.\*\.source", "what an input is made of"),
)
FACTS = ((r"(settings|generation_config).*", "how tokens are chosen"), (r".*", "what the model says about generating"))
JOB = (
    (r"request\.(out|partial)", "where a job's own result goes"),
    (r"request\.positions.*", "which rows a job was asked for"),
    (r"request\.input.*", "which file a job reads"),
)

RULES: dict[str, str | tuple[tuple[str, str], ...]] = {
    "manifest": (),
    "program": PROGRAM,
    "program, generating": PROGRAM,
    "engines": "an engine's own operators and numbers",
    "engines, generating": "an engine's own operators and numbers",
    "weights": "the bytes of weights",
    "tokenizer": "the tokenizer's table",
    "facts": FACTS,
    "job": JOB,
    "job's values": "the bytes of a job's values, with their checksum",
    "results": (),
    "results' files": "results that were finished before, which are not read again",
    "pages": "the bytes of a page, with its checksum",
    "requests": "another request",
    "arrays": "another input",
    "lines": "another input",
}
"""By kind: one rule for any change, or patterns of the places that were changed, each with its rule."""

ENGINES = ("engines", "engines, generating")
TWO = "one engine's own operators and numbers, which others do not have"
"""Nothing but the engine itself says what it computes: files that were changed each for itself may differ."""

SOURCE = "another model"
"""Of the kinds without an entry: what is compiled is what the source says."""


def explained(kind: str, places: set[str] | None, verdict: Verdict) -> Verdict:
    """The verdict; of a difference with the rule that explains it, or as one that none explains.

    Args:
        kind: The mutant's.
        places: What :func:`places_of` said before anything was done with it.
        verdict: What became of it.
    """
    if verdict.outcome == "two answers" and kind in ENGINES:
        return replace(verdict, outcome="different", detail=TWO)
    if verdict.outcome != "different":
        return verdict
    rules = RULES.get(kind, SOURCE)
    if isinstance(rules, str):
        return replace(verdict, detail=rules)
    if places is None:
        return replace(verdict, outcome="unexplained", detail="its bytes changed")
    found = {place: next((rule for pattern, rule in rules if re.fullmatch(pattern, place)), None) for place in places}
    if not found or None in found.values():
        return replace(verdict, outcome="unexplained", detail=f"changed: {found}")
    return replace(verdict, detail="; ".join(sorted(set(map(str, found.values())))))


def places_of(kind: str, before: Path, after: Path) -> set[str] | None:
    """Where two files of JSON differ, if the rules of the kind ask for it; ``None`` where one is no JSON."""
    if isinstance(RULES.get(kind, SOURCE), str):
        return set()
    try:
        trees = [json.loads(path.read_bytes()) for path in (before, after)]
        if all("content" in tree for tree in trees):
            trees = [unseal(path.read_bytes()) for path in (before, after)]
    except (ValueError, TypeError, RecursionError):
        return None
    return set(changed_places(trees[0], trees[1]))


def changed_places(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths at which two trees differ, with ``*`` for an entry of a list; a list of another length is one place."""
    if isinstance(before, dict) and isinstance(after, dict):
        old, new = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        for name in old.keys() | new.keys():
            inner = f"{path}.{name}" if path else name
            if name not in old or name not in new:
                yield inner
            else:
                yield from changed_places(old[name], new[name], inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):  # pyright: ignore
        for one, other in zip(before, after, strict=True):  # pyright: ignore
            yield from changed_places(one, other, f"{path}.*")
    elif json.dumps(before) != json.dumps(after):
        yield path
