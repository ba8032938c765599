"""Whether the weights that a manifest lists can lie where it says: inside the file, aligned, none over another."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np

from twoheads.graphs.serialization.bundle_format import ALIGNMENT, WEIGHTS, Manifest, WeightEntry

__all__ = ["DTYPES", "weights_problem"]

DTYPES = frozenset({"float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"})
"""What values and weights may be of."""


def weights_problem(manifest: Manifest) -> str | None:
    """What is wrong with the table of weights, if anything.

    Weights may lie in one place only if they are one: tied weights have equal entries.
    """
    size = manifest.files[WEIGHTS].size if WEIGHTS in manifest.files else 0
    for name, entry in manifest.weights.items():
        if entry.dtype not in DTYPES:
            return f"weight {name}: dtype {entry.dtype!r}"
        if any(dim < 0 for dim in entry.shape) or entry.offset < 0:
            return f"weight {name}: negative size"
        if entry.offset % ALIGNMENT:
            return f"weight {name} is not aligned: it begins at byte {entry.offset}, no multiple of {ALIGNMENT}"
        if _end(entry) > size:
            return f"weight {name} ends at byte {_end(entry)}, {WEIGHTS} has {size}"
    return _overlap(manifest)


def _overlap(manifest: Manifest) -> str | None:
    placed = sorted(((entry.offset, name) for name, entry in manifest.weights.items() if prod(entry.shape)))
    for (_, name), (_, other) in pairwise(placed):
        first, second = manifest.weights[name], manifest.weights[other]
        if first != second and _end(first) > second.offset:
            return f"weight {other} lies over weight {name} and is not the same"
    return None


def _end(entry: WeightEntry) -> int:
    """The byte behind its last."""
    return entry.offset + prod(entry.shape) * np.dtype(entry.dtype).itemsize
