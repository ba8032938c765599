"""Which program a single input runs: that of the bundle, or one whose engines hold several of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twoheads.graphs.one_block import OneBlock
from twoheads.graphs.program import Program

__all__ = ["FusedPrograms"]


@dataclass(frozen=True, slots=True)
class FusedPrograms:
    """A program and what can be run in its place.

    Attributes:
        program: The program itself.
        block: For inputs of at most one block, in one call; ``None`` where there is no engine for it.
        steps: With windowed layers in one call a block; likewise.
    """

    program: Program
    block: OneBlock | None
    steps: Program | None

    def chosen(self, lengths: Mapping[str, int]) -> Program:
        """The program that an input of these lengths, by axis, runs."""
        if self.block is not None and self.block.takes(lengths):
            return self.block.program
        return self.program if self.steps is None else self.steps
