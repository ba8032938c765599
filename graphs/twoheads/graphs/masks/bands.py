"""Masks in which a query's keys are one interval around it, and perhaps the first few: what needs no mask input."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.terms import INFINITE, mask_terms

__all__ = ["Band", "band_of"]


@dataclass(frozen=True, slots=True)
class Band:
    """Query ``i`` sees keys ``i - left <= j <= i + right`` and, up to ``i + right``, the first ``sinks`` keys.

    ``INFINITE`` stands for a side without an end; ``sinks`` is 0 where there are none.
    """

    left: int
    right: int
    sinks: int


def band_of(mask: Mask) -> Band | None:
    """The band that ``mask`` is, or ``None`` where it is none (chunks, a prefix that is seen ahead of time)."""
    match mask_terms(mask):
        case (term,) if (term.sinks, term.chunk) == (INFINITE, INFINITE):
            return Band(term.left, term.right, 0)
        case (first, second):
            band, sunk = (first, second) if first.sinks == INFINITE else (second, first)
            wide = (band.sinks, band.chunk, sunk.chunk, sunk.left) == (INFINITE,) * 4
            # Sinks that end earlier than the band add only keys behind it, so their own end does not matter.
            return Band(band.left, band.right, sunk.sinks) if wide and sunk.right <= band.right else None
        case _:
            return None
