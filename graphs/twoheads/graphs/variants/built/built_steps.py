"""What extends a sequence on an accelerator: engines that its compiler builds, with weights inside.

An engine that holds all layers would be built once for every capacity, with all weights each time. So an accelerator
computes a step stage by stage: token-wise engines of :data:`BUILT_ROWS` rows, and attention over tiles of several
widths, whose partial results are merged. One set of them serves contexts of any length, and a step has the same bits
whoever asks for it. Whole blocks of a prompt are computed by runs, on the engines that a run has anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from twoheads.graphs.program.program import Program, TokenwiseEngine, TokenwiseStage
from twoheads.graphs.variants.steps import SMALL_ROWS, STEP, Steps, step_steps

__all__ = ["BUILT_ROWS", "built_name", "built_stages", "built_steps"]

BUILT_ROWS = SMALL_ROWS[-1]
"""Rows of every such engine: a step of one token computes rows that are nobody's, and guesses take as long as one."""


@lru_cache(maxsize=16)
def built_steps(program: Program) -> Steps | None:
    """How sequences of ``program`` are extended there; ``None`` where something else than attention joins tokens."""
    steps = step_steps(program)
    return replace(steps, middle=False) if steps is not None and steps.by_runs else None


def built_stages(steps: Steps) -> Iterator[tuple[TokenwiseStage, TokenwiseEngine]]:
    """The token-wise stages of a step and of its logits, named as artifacts call them, each with its engine."""
    regions = ((stage, steps.region(stage, BUILT_ROWS)) for stage, _ in steps.body.regions)
    for stage, engine in (*regions, *steps.heads(BUILT_ROWS)):
        yield replace(stage, name=built_name(stage)), engine


def built_name(stage: TokenwiseStage) -> str:
    """What artifacts call a stage of a step: the name that it has in a run is that of another artifact."""
    return f"{STEP}{BUILT_ROWS}_{stage.name}"
