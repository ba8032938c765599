"""From the hidden states of all tokens to one vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError
from twoheads.graphs.program.program import Pooling

__all__ = ["pool", "pooled_rows"]

SMALLEST_NORM = 1e-12
"""Below this a vector is not stretched to unit length; the value that torch's ``normalize`` uses."""


def pool(hidden: npt.NDArray[Any], pooling: Pooling) -> npt.NDArray[np.float32]:
    """The embedding ``[width]`` of ``hidden [tokens, width]``, accumulated in float64.

    Args:
        hidden: The last hidden states of the real tokens, one or more.
        pooling: ``mean`` of all, ``cls`` (the first) or ``last``; scaled to unit length if ``normalize``.

    Raises:
        BundleError: The mode is none of these.
    """
    vector: npt.NDArray[np.float64]
    match pooling.mode:
        case "mean":
            vector = hidden.mean(axis=0, dtype=np.float64)
        case "cls":
            vector = hidden[0].astype(np.float64)
        case "last":
            vector = hidden[-1].astype(np.float64)
        case mode:
            raise BundleError("pooling", f"mode {mode!r} is unknown", "update twoheads, or compile the model again")
    if pooling.normalize:
        vector = vector / max(float(np.sqrt(np.sum(vector * vector))), SMALLEST_NORM)
    return vector.astype(np.float32)


def pooled_rows(pooling: Pooling, length: int) -> range:
    """Those of ``length`` hidden states that :func:`pool` reads."""
    return range(*{"cls": (0, 1), "last": (length - 1, length)}.get(pooling.mode, (0, length)))
