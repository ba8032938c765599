"""How far two results of one engine are apart, as one number that means the same for tensors of any magnitude."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["relative_error"]


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The largest distance as a share of the largest magnitude that is expected; infinite where numbers are missing.

    Where what is expected are no numbers itself (a norm of zeros, a mask's ``-inf``), there is nothing to compare.

    Args:
        found: As many elements as expected, of any shape: compilers drop leading ones.
        expected: The yardstick.
    """
    want = expected.astype(np.float64)
    numbers = np.isfinite(want)
    magnitude = np.abs(want[numbers]).max(initial=1e-30)
    distance = np.abs(found.reshape(want.shape).astype(np.float64)[numbers] - want[numbers]).max(initial=0) / magnitude
    return float(distance) if math.isfinite(distance) else math.inf
