"""Whether values in float16 have stayed within its range: beyond it they are infinite, and soon no numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["REMEDY", "HalfRangeError", "check_half_range"]

REMEDY = "compile the model with --dtype fp32"

MAGNITUDE = np.uint16(0x7FFF)
LARGEST = 0x7BFF
"""The bits of 65504, the largest float16; those of infinity and of no number at all are greater."""


class HalfRangeError(InputError):
    """A value is beyond float16's range."""


def check_half_range(stage: str, stores: Iterable[ValueStore], blocks: Iterable[int]) -> None:
    """Raises if a float16 value that ``stage`` has computed reached the end of float16's range.

    Args:
        stage: Its name.
        stores: What it wrote; padding is zero.
        blocks: The blocks that it computed.

    Raises:
        HalfRangeError: Names the stage and the value.
    """
    half = [store for store in stores if store.value.dtype == "float16"]
    for block in blocks if half else ():
        for store in half:
            # A comparison of bits takes a fiftieth of the time of np.isfinite on float16.
            if int((store.block(block).view(np.uint16) & MAGNITUDE).max(initial=0)) >= LARGEST:
                problem = f"gives {store.value.name!r} beyond float16's range, which ends at 65504"
                raise HalfRangeError(f"stage {stage}", problem, REMEDY)
