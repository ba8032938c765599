"""A table with one entry for each kind of stage, or of engine: how a room treats each of them.

A room that does something for stages has one such table. A new kind is a module in the room and a row in its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from twoheads.graphs.errors import InternalError

__all__ = ["ByKind"]

T = TypeVar("T")


class ByKind(Generic[T]):
    """Entries by type; a type without one has that of the nearest type it is derived from.

    Args:
        room: What the table is for, in the words of an error.
        entries: The table.
    """

    def __init__(self, room: str, entries: Mapping[type, T]) -> None:
        self._room = room
        self._entries = entries

    def of(self, thing: object) -> T:
        """The entry of the kind of ``thing``.

        Raises:
            InternalError: There is none.
        """
        for kind in type(thing).__mro__:
            if kind in self._entries:
                return self._entries[kind]
        raise InternalError(f"{self._room}: no entry for {type(thing).__name__}")
