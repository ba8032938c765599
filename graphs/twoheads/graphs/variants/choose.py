"""Which program a single input runs: that of the bundle, or one whose engines hold several of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.program import TOKENS, Program
from twoheads.graphs.variants.model_steps import MODEL, model_steps
from twoheads.graphs.variants.one_block import one_block
from twoheads.graphs.variants.window_steps import WINDOW, window_steps

__all__ = ["FusedPrograms", "fused_programs", "fused_steps"]


@dataclass(frozen=True, slots=True)
class FusedPrograms:
    """A program and what can be run in its place.

    Attributes:
        program: The program itself.
        block: For inputs of at most one block, in one call; ``None`` where there is no engine for it.
        steps: With windowed layers in one call a block; likewise.
        model: With all layers in one call a block, for inputs of any length; likewise.
    """

    program: Program
    block: Program | None = None
    steps: Program | None = None
    model: Program | None = None

    def chosen(self, lengths: Mapping[str, int]) -> Program:
        """The program that an input of these lengths, by axis, runs."""
        if self.model is not None:
            return self.model
        if self.block is not None and lengths.get(TOKENS, 0) <= self.program.block_size:
            return self.block
        return self.program if self.steps is None else self.steps

    @property
    def whole(self) -> Program | None:
        """The one of them whose calls compute a whole block, by all threads, if there is one."""
        return self.model or self.block


def fused_programs(program: Program, lowering: str, *, short: bool) -> FusedPrograms:
    """What a bundle of this lowering runs in place of ``program``.

    ``short`` says whether it holds the engine for short inputs; where all layers are one call, that serves them too.
    """
    if lowering == MODEL:
        return FusedPrograms(program, model=model_steps(program))
    steps = window_steps(program) if lowering == WINDOW else None
    return FusedPrograms(program, one_block(program) if short else None, steps)


def fused_steps(program: Program, lowering: str, *, short: bool = False) -> Iterator[tuple[Program, FusedEngine]]:
    """The engines that a bundle of this lowering holds beside those of ``program``, each with the program it is of.

    That of short inputs, which bundles of most lowerings hold, is among them if ``short`` says so.
    """
    fused = fused_programs(program, lowering, short=short)
    for steps in (fused.block, fused.steps, fused.model):
        if steps is not None:
            yield from ((steps, engine) for engine in steps.engines if isinstance(engine, FusedEngine))
