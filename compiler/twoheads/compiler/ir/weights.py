"""Weights that are read when they are needed, whatever door they came through."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol, runtime_checkable

__all__ = ["Deferred", "Stacked", "in_memory", "parts_in_memory"]


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


@runtime_checkable
class Stacked(Deferred, Protocol):
    """One whose entries along the first dimension, those of experts, can be read one by one."""

    @property
    def stacked(self) -> bool:
        """Whether it is such a one."""
        ...

    def part(self, number: int) -> Any:
        """The numbers of one entry."""
        ...


def in_memory(weight: Any) -> Any:
    """A weight as a tensor or an array whose numbers are there."""
    return weight.read() if isinstance(weight, Deferred) else weight


def parts_in_memory(weight: Any) -> Iterator[Any]:
    """The entries of a weight along its first dimension, one in memory at a time where they can be read so."""
    if isinstance(weight, Stacked) and weight.stacked:
        yield from map(weight.part, range(weight.shape[0]))
    else:
        yield from in_memory(weight)
