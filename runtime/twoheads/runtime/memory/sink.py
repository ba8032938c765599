"""Where the rows of a result go."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Sink"]


class Sink(Protocol):
    """Takes rows in ascending order; never called by two threads at once."""

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        """Takes ``rows [count, width]``, the rows from ``start_row`` on; they are only valid during the call."""
        ...
