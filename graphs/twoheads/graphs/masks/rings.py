"""Rings of blocks: what is kept of a sequence for queries that see a window of it."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.expressions import Mask

__all__ = ["Ring", "ring_of", "widest_ring"]


@dataclass(frozen=True, slots=True)
class Ring:
    """Whole blocks that a windowed layer keeps: the last ``before`` ones and, for its sink tokens, the first of all.

    One block more is kept than the window reaches, so that a sequence can be cut back by up to a block.
    """

    before: int
    first: bool

    @property
    def blocks(self) -> int:
        """Blocks that are kept."""
        return self.first + self.before

    def slot(self, block: int) -> int:
        """Where whole block ``block`` lies; it replaces what no later query sees."""
        if self.first and block == 0:
            return 0
        return self.first + (block - self.first) % self.before

    def held(self, blocks: int) -> dict[int, int]:
        """Of ``blocks`` whole blocks those that are there, by slot."""
        found = {self.slot(block): block for block in range(max(0, blocks - self.before), blocks)}
        return found | ({0: 0} if self.first and blocks else {})


def ring_of(mask: Mask, block: int) -> Ring | None:
    """The ring of blocks of ``block`` tokens that queries under ``mask`` need; ``None`` where they need all."""
    band = band_of(mask)
    if band is None or band.left >= 1 << 40 or band.sinks > block:
        return None
    return Ring(-(-band.left // block) + 1, band.sinks > 0)


def widest_ring(rings: list[Ring | None]) -> Ring | None:
    """The ring that holds what any of them does; ``None`` where one is ``None``: all is needed."""
    known = [ring for ring in rings if ring is not None]
    if len(known) < len(rings):
        return None
    return Ring(max(ring.before for ring in known), any(ring.first for ring in known))
