"""What ``verify`` does for bundles that are not exact.

Two questions are kept apart: is the bundle exactly what its policy says (the original under the same mask, compared
at rounding level), and how far is that from the original as it is (a number, never a pass)?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.policy import parse_policy
from twoheads.graphs.program.program import AttentionStage
from twoheads.runtime import LoadedBundle

if TYPE_CHECKING:
    from twoheads.compiler.frontend.torch.impose_attention import Imposition

__all__ = ["ApproximationError", "approximation_error", "imposition"]


@dataclass(frozen=True, slots=True)
class ApproximationError:
    """The original under the bundle's mask against the original as it is.

    Attributes:
        hidden_relative: Root mean square of the hidden states' difference over that of the hidden states.
        hidden_max_abs: Largest absolute difference of the hidden states.
        logits_max_abs: Of the logits, at the compared positions; ``None`` without a head.
        top1_agreement: Share of those positions where both prefer the same token; ``None`` without a head.
    """

    hidden_relative: float
    hidden_max_abs: float
    logits_max_abs: float | None
    top1_agreement: float | None


def approximation_error(
    hidden: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32] | None,
    approximate_hidden: npt.NDArray[np.float32],
    approximate_logits: npt.NDArray[np.float32] | None,
) -> ApproximationError:
    """The error of ``hidden [n, width]`` and ``logits [p, classes]`` by the approximation."""
    difference = approximate_hidden - hidden
    size = float(np.sqrt(np.mean(np.square(hidden, dtype=np.float64))))
    root = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
    worst = agreement = None
    if logits is not None and approximate_logits is not None:
        worst = float(np.abs(approximate_logits - logits).max(initial=0.0))
        agreement = float(np.mean(approximate_logits.argmax(-1) == logits.argmax(-1)))
    return ApproximationError(
        hidden_relative=root / size if size else root,
        hidden_max_abs=float(np.abs(difference).max(initial=0.0)),
        logits_max_abs=worst,
        top1_agreement=agreement,
    )


def imposition(bundle: LoadedBundle) -> Imposition | None:
    """What makes the original obey the bundle's policy, for one run; ``None`` for an exact bundle."""
    if not bundle.manifest.approximations:
        return None
    from twoheads.compiler.frontend.torch.impose_attention import Imposition, average_band, window_band

    stages = [stage for stage in bundle.program.body if isinstance(stage, AttentionStage)]
    policy = parse_policy(bundle.manifest.approximations[0])
    if not policy.samples:
        return Imposition((window_band(policy),) * len(stages))
    sizes = (bundle.program.block_size, bundle.program.key_tile)
    return Imposition(tuple(average_band(stage, *sizes) for stage in stages))
