"""Kinds of pages that are not the model's own, by name."""

from __future__ import annotations

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.in_place.rounded_steps import RoundedSteps
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.kept.rounded import RoundedBlocks
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.kept.rows import KeptBlocks

__all__ = ["named_pages"]


def named_pages(pages: str, steps: Steps, rounded: RoundedSteps | None, *, cached: bool) -> KeptBlocks:
    """Empty pages of that kind.

    Args:
        pages: Their kind: of :class:`RoundedBlocks` or :class:`RoundedReads`.
        steps: Whose.
        rounded: What reads 8 bits, if anything does.
        cached: Whether beginnings of texts are kept beside.

    Raises:
        InputError: There is no such kind, or these are not kept here; says why.
    """
    if pages not in (RoundedBlocks.pages, RoundedReads.pages):
        fix = f"give {RoundedBlocks.pages} or {RoundedReads.pages}, or leave it out for those of the model"
        raise InputError("pages", f"are {pages!r:.40}", fix)
    if not steps.kept:
        raise InputError("pages", "are named, and the model keeps no keys", "leave it out")
    if pages == RoundedBlocks.pages:
        if cached:
            raise InputError("pages", "are rounded, and kept beginnings are not", "generate without a cache")
        return RoundedBlocks(steps)
    if rounded is None:
        problem = "are to be read in 8 bits, and no engine of this bundle and backend reads such"
        raise InputError("pages", problem, "leave it out; a model needs a layer of full attention in float32")
    return RoundedReads(rounded)
