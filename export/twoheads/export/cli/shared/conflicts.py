"""Which options exclude each other, and which need another: one table for all commands."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from twoheads.graphs.errors import InputError

__all__ = ["CONFLICTS", "NEEDS", "Conflict", "Need", "check_conflicts"]


class Conflict(NamedTuple):
    """Two options that do not go together, and why."""

    option: str
    other: str
    reason: str


class Need(NamedTuple):
    """An option that means nothing without another, and why."""

    option: str
    needed: str
    reason: str


TWO_INPUTS = "two inputs are given"
FIXED = "a run by layers compares what two backends make of the same engines"

CONFLICTS = (
    Conflict("--text", "--tokens", TWO_INPUTS),
    Conflict("--text", "--input", TWO_INPUTS),
    Conflict("--tokens", "--input", TWO_INPUTS),
    Conflict("--lines", "--documents", TWO_INPUTS),
    Conflict("--positions", "--input", "positions are of one text or token sequence"),
    Conflict("--cluster", "--spill", "a cluster's workers hold the values in their memory"),
    Conflict("--truncate", "--lines", "only documents are cut"),
    Conflict("--follow-links", "--lines", "only folders of documents hold links"),
    Conflict("--spill", "--documents", "documents have checkpoints of their own"),
    Conflict("--report", "--documents", "the folder of results says what became of every document"),
    Conflict("--workers", "--memory-limit", "that is of a run on one machine, which keeps values in files"),
    Conflict(
        "--for", "--dtype", "what is built for an accelerator begins with float32: choose by twoheads build --precision"
    ),
    Conflict("--speculate", "--prompts", "guesses take the rows that other prompts need"),
    Conflict("--draft", "--prompts", "guesses take the rows that other prompts need"),
    Conflict("--draft", "--speculate", "guesses are a draft's, or those of the text so far"),
    Conflict("--load-context", "--prompts", "a context is of one sequence"),
    Conflict("--save-context", "--prompts", "a context is of one sequence"),
    Conflict("--steady", "--prompts", "prompts of a file are computed so anyhow"),
    Conflict("--against", "--polygraphy", "two things to compare with are given"),
    *(
        Conflict(option, "--polygraphy", FIXED)
        for option in ("--target", "--result", "--backend", "--precision", "--trust-remote-code")
    ),
)

NEEDS = (
    Need("--at-once", "--prompts", "it is about many prompts"),
    Need("--compare", "--workers", "it compares rows of a table by workers"),
    Need("--plot", "--workers", "it draws the table by workers"),
    Need(
        "--workers", "--device", "it takes the measured times of one machine's calls: twoheads profile BUNDLE -o FILE"
    ),
    *(Need(option, "--polygraphy", "it is about layers") for option in ("--engine", "--backends", "--save")),
    Need("--tolerance", "--polygraphy", "it is about layers"),
)


def check_conflicts(given: Collection[str], known: Collection[str]) -> None:
    """Refuses options that do not go together.

    Args:
        given: The long names of the options that are given, of one command.
        known: Those that it has.

    Raises:
        InputError: Names the first such pair, with the reason.
    """
    for option, other, reason in CONFLICTS:
        if option in given and other in given:
            raise InputError(option, f"does not go together with {other}: {reason}", f"leave out {option} or {other}")
    for option, needed, reason in NEEDS:
        if option in given and needed in known and needed not in given:
            raise InputError(option, f"is given without {needed}: {reason}", f"add {needed}, or leave {option} out")
