"""Where the rows of a result go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from twoheads.graphs.serialization.json_codec import FormatError, from_json

__all__ = ["KeptRows", "KeptSink", "Sink"]


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

    def restore(self, saved: Any, rows: int) -> bool:
        """Goes on behind those rows, of which there must be ``rows``; ``False`` where they are gone.

        Raises:
            FormatError: ``saved`` is nothing that :meth:`save` gives, or of another number of rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What a file of the project's own says of the rows that it has on the disk: how many, and their sha256."""

    rows: int
    sha256: str

    @classmethod
    def read(cls, saved: Any, rows: int) -> KeptRows:
        """What :meth:`KeptSink.save` gave behind ``rows`` rows.

        Raises:
            FormatError: It is something else.
        """
        found = from_json(cls, saved, "rows")
        if found.rows != rows:
            raise FormatError(f"rows: {found.rows} are kept, and {rows} are done")
        return found
