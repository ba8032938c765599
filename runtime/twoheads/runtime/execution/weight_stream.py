"""Weights that are in memory for their stage only: engines are opened for it, and let go behind it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import ExpertsStage, Stage, TokenwiseStage
from twoheads.runtime.execution.engine_pool import EnginePool

__all__ = ["WeightStream"]


class WeightStream:
    """Which engines with weights are open in a run that can't hold them all.

    A run visits its stages one after the other, each over all blocks. So it reads every weight once, at any length,
    and while a stage computes the system reads ahead the weights of the next one. Results are the same to the bit.

    Args:
        engines: Of the run.
        ahead: A thread opens the engines of each stage while the one before it computes.
    """

    def __init__(self, engines: EnginePool, *, ahead: bool = False) -> None:
        self._engines = engines
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="twoheads-weights") if ahead else None
        self._opening: Future[None] | None = None
        self._open: tuple[TokenwiseStage, ...] = ()
        self._following: tuple[TokenwiseStage, ...] = ()
        self._after: dict[str, tuple[TokenwiseStage, ...]] = {}

    def begin(self, body: Sequence[Stage], head: Sequence[Stage]) -> list[Stage]:
        """Closes what earlier runs have left open; returns the stages whose engines hold no weights, to be opened."""
        self._engines.close_weighted()
        weighted = [(stage,) for stage in body if isinstance(stage, TokenwiseStage)]
        last = tuple(stage for stage in head if isinstance(stage, TokenwiseStage))
        for step, following in pairwise([*weighted, last]):
            self._after[step[0].name] = following
        return [stage for stage in body if not isinstance(stage, TokenwiseStage)]

    def enter(self, stages: Sequence[Stage]) -> None:
        """Opens the engines of ``stages``, which are next, and lets those of the ones before go.

        One thread opens them all: workers that open one at the same time would hold its weights twice.

        Raises:
            BundleError: One can't be opened.
        """
        entered = tuple(stage for stage in stages if isinstance(stage, TokenwiseStage))
        if any(isinstance(stage, ExpertsStage) for stage in stages):  # which lets its experts go itself
            self._let_go(keep=self._following)
        if not entered:
            return
        if self._opening is not None:
            self._opening.result()
        self._let_go(keep=entered)
        self._open_all(entered)
        self._open, self._following = entered, self._after.get(entered[0].name, ())
        for stage in self._following:
            if not isinstance(stage, ColumnsStage):  # whose weights have no room as a whole
                self._engines.weights.read_ahead(stage.weights)
        if self._ahead is not None:
            self._opening = self._ahead.submit(self._open_all, self._following)

    def end(self) -> None:
        """Lets everything go."""
        if self._ahead is not None:
            self._ahead.shutdown()
        self._let_go()

    def _open_all(self, stages: Sequence[TokenwiseStage]) -> None:
        self._engines.weights.check(name for stage in stages for name in stage.weights)
        for stage in stages:
            if not isinstance(stage, ColumnsStage):  # which opens its parts itself
                self._engines.tokenwise(stage)

    def _let_go(self, keep: Sequence[TokenwiseStage] = ()) -> None:
        self._engines.close_weighted(keep)
        kept = {name for stage in keep for name in stage.weights}
        for stage in self._open:
            self._engines.weights.let_go(name for name in stage.weights if name not in kept)
        self._open = ()
