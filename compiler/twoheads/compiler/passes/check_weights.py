"""Refuses weights that are no numbers: whatever such a model computes would be none either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from twoheads.compiler.ir.source_program import Weight
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
        if not _has_fractions(weight) or np.isfinite(_sum(weight)):
            continue
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


def _sum(weight: Any) -> float:
    """The sum in double precision: it can't overflow, and is no number where a summand is none."""
    if isinstance(weight, np.ndarray):
        with np.errstate(all="ignore"):
            return float(weight.sum(dtype=np.float64))
    import torch

    return float(weight.detach().sum(dtype=torch.float64))
