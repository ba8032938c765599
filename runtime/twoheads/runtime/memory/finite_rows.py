"""Whether what a run gives is numbers: infinities and NaN are seen where rows leave it, and told of once a run."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Value
from twoheads.runtime.memory.half_range import REMEDY, HalfRangeError
from twoheads.runtime.memory.sink import KeptSink, Sink

__all__ = ["FiniteRows", "all_finite", "first_odd_row", "watched"]


def all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether every number of ``array`` is finite."""
    if array.dtype == np.float32 and array.flags.c_contiguous:
        # A product with itself reads the numbers once, at the memory's speed; it can overflow, but not miss one.
        flat = array.reshape(-1)
        with np.errstate(all="ignore"):
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(array).all())


def first_odd_row(rows: npt.NDArray[Any], axis: int = 0) -> int | None:
    """The first place along ``axis`` at which some number is not finite; ``None`` if all are."""
    if all_finite(rows):
        return None
    others = tuple(at for at in range(rows.ndim) if at != axis)
    return int(np.argmin(np.isfinite(rows).all(axis=others)))


class FiniteRows:
    """Looks at the rows that leave one run; any thread may show it rows.

    Args:
        values: Of the program. Where some are float16, an infinity means that the range was too small for the model,
            and is an error; in float32 it is what the model gives, and is told of.
    """

    def __init__(self, values: Iterable[Value]) -> None:
        self._half = any(value.dtype == "float16" for value in values)
        self._lock = threading.Lock()
        self.first: int | None = None
        """The first row of the result that holds what is no finite number, if there is one."""

    def see(self, rows: npt.NDArray[Any], start_row: int = 0) -> None:
        """Looks at ``rows [count, ...]`` of the result, from ``start_row`` on.

        Raises:
            HalfRangeError: Some number is not finite, and the program has values in float16.
        """
        odd = first_odd_row(rows)
        if odd is None:
            return
        if self._half:
            problem = f"is not finite (row {start_row + odd}): some value was beyond float16's range, 65504"
            raise HalfRangeError("the result", problem, REMEDY)
        with self._lock:
            self.first = start_row + odd if self.first is None else min(self.first, start_row + odd)


def watched(sink: Sink, watch: FiniteRows) -> Sink:
    """A sink that shows rows to ``watch`` before it hands them on to ``sink``; one to go on from, if that is one."""
    return _WatchedKept(sink, watch) if isinstance(sink, KeptSink) else _Watched(sink, watch)


class _Watched:
    def __init__(self, sink: Sink, watch: FiniteRows) -> None:
        self._sink = sink
        self._watch = watch

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        self._watch.see(rows, start_row)
        self._sink.write(start_row, rows)


class _WatchedKept(_Watched):
    def __init__(self, sink: KeptSink, watch: FiniteRows) -> None:
        super().__init__(sink, watch)
        self.save = sink.save
        self.restore = sink.restore
