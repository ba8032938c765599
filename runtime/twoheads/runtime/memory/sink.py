"""Where the rows of a result go."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

__all__ = ["KeptSink", "Sink"]


class Sink(Protocol):
    """Takes rows in ascending order; never called by two threads at once."""

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        """Takes ``rows [count, width]``, the rows from ``start_row`` on; they are only valid during the call."""
        ...


@runtime_checkable
class KeptSink(Sink, Protocol):
    """A sink from whose rows a run goes on."""

    def save(self) -> Any:
        """What a checkpoint says of the rows so far, as JSON; they are on the disk."""
        ...

    def restore(self, saved: Any) -> bool:
        """Goes on behind those rows; ``False`` where they are gone."""
        ...
