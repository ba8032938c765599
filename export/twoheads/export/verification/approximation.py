"""What makes the original obey the policy of a bundle that is not exact.

Two questions are kept apart: is the bundle exactly what its policy says (the original under the same mask, compared
at rounding level), and how far is that from the original as it is (a number, never a pass)?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twoheads.graphs.masks.policy import parse_policy
from twoheads.runtime import LoadedBundle

if TYPE_CHECKING:
    from twoheads.compiler.frontend.torch.operators.impose_attention import Imposition

__all__ = ["imposition"]


def imposition(bundle: LoadedBundle) -> Imposition | None:
    """What makes the original obey the bundle's policy, for one run; ``None`` for an exact bundle."""
    if not bundle.manifest.approximations:
        return None
    from twoheads.compiler.frontend.torch.operators.impose_attention import Imposition, average_band, window_band

    stages = bundle.program.attentions
    policy = parse_policy(bundle.manifest.approximations[0])
    if not policy.samples:
        return Imposition((window_band(policy),) * len(stages))
    sizes = (bundle.program.block_size, bundle.program.key_tile)
    return Imposition(tuple(average_band(stage, *sizes) for stage in stages))
