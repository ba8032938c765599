"""Refuses weights that are no numbers: whatever such a model computes would be none either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from twoheads.compiler.ir.source_program import Weight
from twoheads.compiler.ir.weights import Stacked, in_memory
from twoheads.graphs.errors import CompileError

__all__ = ["check_weights"]


def check_weights(weights: Mapping[str, Weight], used: Iterable[str]) -> None:
    """Reads each weight of ``used`` once.

    Args:
        weights: Tensors or arrays by name.
        used: Names; those of no weight count for nothing.

    Raises:
        CompileError: One holds NaN or infinity; names it and the place of the first.
    """
    for name in sorted(set(used) & weights.keys()):
        weight = weights[name]
        if isinstance(weight, Stacked) and weight.stacked:
            for number in range(weight.shape[0]):
                _check(f"{name}[{number}]", weight.part(number))
        else:
            _check(name, in_memory(weight))  # which nobody holds while the next one is read


def _check(name: str, weight: Any) -> None:
    if not _has_fractions(weight) or np.isfinite(_extremes(weight)).all():
        return
    array = weight if isinstance(weight, np.ndarray) else weight.detach().float().numpy()
    odd = ~np.isfinite(array.astype(np.float64, copy=False))
    place = [int(at) for at in np.unravel_index(int(np.argmax(odd)), odd.shape)]
    raise CompileError(
        f"weight {name}",
        f"holds {int(odd.sum())} numbers of {odd.size} that are NaN or infinite, first at {place}",
        "download the model again; --allow-non-finite (allow_non_finite=True) compiles it as it is",
    )


def _has_fractions(weight: Any) -> bool:
    if isinstance(weight, np.ndarray):
        return str(weight.dtype).startswith(("float", "bfloat"))
    return bool(weight.dtype.is_floating_point)


def _extremes(weight: Any) -> tuple[float, float]:
    """The least number and the largest; one that is none is both. Nothing is copied."""
    if not weight.size if isinstance(weight, np.ndarray) else not weight.numel():
        return 0.0, 0.0
    if isinstance(weight, np.ndarray):
        return float(weight.min()), float(weight.max())
    least, largest = weight.detach().aminmax()
    return float(least), float(largest)
