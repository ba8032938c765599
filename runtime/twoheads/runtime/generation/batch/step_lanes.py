"""A token of each of many sequences, whose rows several threads share: each computes all layers of its own rows.

Kernels of two threads wait for each other in every operator, of which a step has hundreds, and a row's attention is too
short to be shared at all. Rows of a batch are of different sequences, and need each other nowhere. So the rows are cut
into *lanes*. A lane's thread calls every engine for its own rows, with kernels of one thread, and waits for others at
the end of the step alone. The head is one large product, which kernels share well, so it is computed for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.variants.batch_steps import SLOTS
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.generation.batch.step import BatchStep, NextToken
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.steps.step import Heads

__all__ = ["StepLanes"]


class StepLanes:
    """Computes the next tokens of sequences; a row's bits depend on its own sequence alone.

    Args:
        engines: Where the engines are open. Their threads are divided among the lanes.
        most: Sequences that are computed at the same time.

    Attributes:
        steps: What computes a lane's rows, by lane.
        threads: Of a lane's kernels.

    Raises:
        BundleError: The bundle has no such engines.
    """

    def __init__(self, engines: StepEngines, most: int) -> None:
        self._engines = engines
        # First: packing so large a weight takes as much memory again for a moment.
        self._heads = Heads(engines, engines.batch_rows(most))
        lanes = _lanes(engines, most)
        self.threads = engines.threads // lanes
        self._beside = [engines.beside(self.threads) for _ in range(lanes)]
        rows = engines.batch_rows(-(-most // lanes))
        self.steps = [BatchStep(own, rows, own.rows_in_place) for own in self._beside]

    def run(self, given: Sequence[NextToken]) -> list[npt.NDArray[np.float32]]:
        """Computes the tokens, and counts them in their contexts; returns the logits ``[classes]`` behind each.

        Raises:
            BaseException: What a lane raised first, or what interrupted the caller, when all lanes have stopped. No
                context counts its token then: it can be computed again.
        """
        order = sorted(range(len(given)), key=lambda at: _order(given[at]))
        parts = [part for part in np.array_split(order, len(self.steps)) if len(part)]
        made: dict[int, npt.NDArray[Any]] = {}
        with Crew(len(parts)) as crew:

            def run(lane: int) -> None:
                made[lane] = self.steps[lane].run([given[at] for at in parts[lane]], crew.check)

            crew.run(range(len(parts)), lambda: run)
        for own in self._beside:
            self._engines.calls, own.calls = self._engines.calls + own.calls, 0
        hidden = np.concatenate([made[lane] for lane in range(len(parts))])[np.argsort(order)]
        found = [
            logits
            for start in range(0, len(hidden), self._heads.rows)
            for logits in self._heads.logits(hidden[start : start + self._heads.rows])
        ]
        for row in given:
            row.count()
        return found


def _lanes(engines: StepEngines, most: int) -> int:
    """As many as there are threads, but none of fewer rows than one attention call has: few rows cost what more do.

    There is one where kernels take a weight at a time that all rows share: where experts are gathered, engines pass, or
    another runtime keeps what it has packed for each thread.
    """
    if engines.layered or not engines.backend.in_place:
        return 1
    return max(1, min(engines.threads, most // SLOTS))


def _order(row: NextToken) -> tuple[int, int, int]:
    """Rows of a slab stand together, in the order of its slots."""
    slab, slot = row.place
    return slab.capacity, id(slab), slot
