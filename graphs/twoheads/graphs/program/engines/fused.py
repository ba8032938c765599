"""Engines that hold attention beside token-wise regions, and are called as token-wise ones are: once a block."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine

__all__ = ["BlockEngine", "FusedEngine", "ModelEngine", "WindowEngine"]


@dataclass(frozen=True, slots=True)
class FusedEngine(TokenwiseEngine):
    """Attributes beside those of a token-wise engine.

    Attributes:
        workspace: Bytes of intermediate arrays of one call: an estimate.
    """

    workspace: int


@dataclass(frozen=True, slots=True)
class BlockEngine(FusedEngine):
    """The whole body for one block; see :mod:`twoheads.graphs.variants.one_block`."""


@dataclass(frozen=True, slots=True)
class ModelEngine(BlockEngine):
    """The same with the keys and values of the blocks before; see :mod:`twoheads.graphs.variants.model_steps`."""


@dataclass(frozen=True, slots=True)
class WindowEngine(FusedEngine):
    """Windowed attention and the region behind it; see :mod:`twoheads.graphs.variants.window_steps`.

    Attributes:
        attention, region: The names of the two engines that it stands for.
        attended: Which input of the region's engine is the attention's output.
    """

    attention: str
    region: str
    attended: int
