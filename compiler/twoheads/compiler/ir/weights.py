"""Weights that are read when they are needed, whatever door they came through."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Deferred", "in_memory"]


@runtime_checkable
class Deferred(Protocol):
    """A tensor or an array that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def dtype(self) -> Any:
        """Its type, as torch or NumPy has it."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for two of them that are the same numbers."""
        ...

    def read(self) -> Any:
        """The numbers, as a tensor or an array that nobody else keeps."""
        ...


def in_memory(weight: Any) -> Any:
    """A weight as a tensor or an array whose numbers are there."""
    return weight.read() if isinstance(weight, Deferred) else weight
