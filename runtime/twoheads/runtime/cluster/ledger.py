"""Who holds which block of which value, and where it lies: never the block itself."""

from __future__ import annotations

from collections.abc import Iterable

from twoheads.graphs.schedule.placement import DRIVER
from twoheads.runtime.cluster.transport import Piece

__all__ = ["Ledger"]


class Ledger:
    """The holders of every block that is alive, by worker, and where each one's copy lies."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[int, dict[int, Piece]]] = {}

    def add(self, name: str, block: int, worker: int, piece: Piece) -> None:
        """Notes that ``worker`` (or the driver) holds the block."""
        self._holders.setdefault(name, {}).setdefault(block, {})[worker] = piece

    def holds(self, name: str, block: int) -> bool:
        """Whether anybody holds the block."""
        return bool(self._holders.get(name, {}).get(block))

    def lost(self, name: str, blocks: Iterable[int]) -> list[int]:
        """Those of ``blocks`` that nobody holds."""
        return [block for block in blocks if not self.holds(name, block)]

    def nearest(self, name: str, block: int, worker: int) -> tuple[int, Piece]:
        """A holder of the block, ``worker`` itself if it can be, and where its copy lies."""
        holders = self._holders[name][block]
        holder = worker if worker in holders else next(iter(holders))
        return holder, holders[holder]

    def only_holders(self, names: Iterable[str]) -> dict[tuple[str, int], int]:
        """The blocks of ``names`` of which there is one copy, and that a worker's, with that worker."""
        return {
            (name, block): next(iter(holders))
            for name in names
            for block, holders in self._holders.get(name, {}).items()
            if len(holders) == 1 and DRIVER not in holders
        }

    def forget_worker(self, worker: int) -> None:
        """Strikes out what ``worker`` held."""
        for blocks in self._holders.values():
            for holders in blocks.values():
                holders.pop(worker, None)

    def forget_copy(self, name: str, block: int, worker: int) -> None:
        """Strikes out the copy of ``worker``."""
        self._holders.get(name, {}).get(block, {}).pop(worker, None)

    def release(self, names: Iterable[str]) -> None:
        """Lets go of all copies of the values ``names``."""
        for name in names:
            self._holders.pop(name, None)

    @property
    def values(self) -> set[str]:
        """Names of the values of which blocks are held."""
        return set(self._holders)
