"""Whether values in float16 have stayed within its range: beyond it they are infinite, and soon no numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["FiniteRows", "check_finite", "check_half_range"]

REMEDY = "compile the model with --dtype fp32"

MAGNITUDE = np.uint16(0x7FFF)
LARGEST = 0x7BFF
"""The bits of 65504, the largest float16; those of infinity and of no number at all are greater."""


def check_half_range(stage: str, stores: Iterable[ValueStore], blocks: Iterable[int]) -> None:
    """Raises if a float16 value that ``stage`` has computed reached the end of float16's range.

    Args:
        stage: Its name.
        stores: What it wrote; padding is zero.
        blocks: The blocks that it computed.

    Raises:
        InputError: Names the stage and the value.
    """
    half = [store for store in stores if store.value.dtype == "float16"]
    for block in blocks if half else ():
        for store in half:
            # A comparison of bits takes a fiftieth of the time of np.isfinite on float16.
            if int((store.block(block).view(np.uint16) & MAGNITUDE).max(initial=0)) >= LARGEST:
                problem = f"gives {store.value.name!r} beyond float16's range, which ends at 65504"
                raise InputError(f"stage {stage}", problem, REMEDY)


def check_finite(rows: npt.NDArray[Any]) -> None:
    """Raises if a result of float16 values, which nobody looked at on their way, is not finite.

    What is infinite in a model's middle is no number in its results: norms divide it by itself.

    Raises:
        InputError: Some number is not finite.
    """
    if not np.isfinite(rows).all():
        raise InputError("the result", "is not finite: some value was beyond float16's range, 65504", REMEDY)


class FiniteRows:
    """A sink that hands finite rows on to another, and raises at others."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, start_row: int, rows: npt.NDArray[Any]) -> None:
        check_finite(rows)
        self._sink.write(start_row, rows)
