"""An attention policy imposed on one attention, or on a finished program: what a plan of an approximation needs."""

from __future__ import annotations

from dataclasses import replace

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.policy import Policy, restrict
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.lengths import is_cross
from twoheads.graphs.program.program import AttentionStage, Program

__all__ = ["impose_policy", "restricted_attention"]


def restricted_attention(mask: Mask, policy: Policy, *, biased: bool, where: str) -> tuple[Mask, Average | None]:
    """The mask of one attention under ``policy``, and how it samples its keys.

    A sampling policy leaves a layer with a window of its own as it is, and every policy one that is narrower already.

    Args:
        mask: The layer's own.
        policy: What is imposed.
        biased: Whether the layer adds a bias by distance.
        where: The layer, for the message.

    Raises:
        CompileError: Keys are to be sampled in a layer with a bias.
    """
    if not policy.samples:
        return restrict(mask, policy), None
    if not Average.applies_to(mask):
        return mask, None
    if biased:
        raise CompileError(
            f"{where} (attention)",
            "adds a bias by distance to its scores, and sampled keys lie at any distance",
            "choose a policy without average, e.g. window:1024",
        )
    return mask, Average(policy.samples, policy.window, policy.sinks, policy.seed)


def impose_policy(program: Program, policy: Policy) -> Program:
    """The program with every attention's mask restricted (Theorem 5.1) or its keys sampled (Theorem 4.1).

    Its engines are those of ``program``, so that times measured on them hold. ``program`` itself where that changes
    nothing. Cross attention stays: a policy speaks of distances within one sequence.

    Raises:
        CompileError: Keys are to be sampled in a layer with a bias.
    """
    values = {value.name: value for value in program.values()}

    def imposed(stage: AttentionStage) -> AttentionStage:
        if is_cross(stage, values) or stage.average is not None:
            return stage
        mask, average = restricted_attention(
            stage.mask, policy, biased=stage.bias is not None, where=f"stage {stage.name}"
        )
        return stage if mask is stage.mask and average is None else replace(stage, mask=mask, average=average)

    return program.with_attentions(imposed)
