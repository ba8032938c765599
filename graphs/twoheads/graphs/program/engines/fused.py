"""The engine that holds a run of stages; see :mod:`twoheads.graphs.program.fused`."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine

__all__ = ["FusedEngine"]


@dataclass(frozen=True, slots=True)
class FusedEngine(TokenwiseEngine):
    """Attributes beside those of a token-wise engine.

    Attributes:
        workspace: Bytes of intermediate arrays of one call: an estimate.
        whole: It holds all attentions: its kernels use the run's threads, one call after the other.
    """

    workspace: int
    whole: bool
