"""Run one mixture of experts: the tokens of all blocks are gathered by expert, and each expert computes its own.

Calls are made side by side, each by one thread. What they give is added up in their order, so the sum is the same
whatever the number of threads. Nothing of an expert that no token chose is read.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.experts import ExpertsEngine
from twoheads.graphs.program.program import ExpertsStage
from twoheads.runtime.execution.in_order import InOrder
from twoheads.runtime.execution.mixture import Chosen, Mixture, chosen_experts
from twoheads.runtime.execution.run_state import RunState

__all__ = ["open_experts", "run_experts"]

WAITING = 2
"""Calls a thread whose rows may wait until those before them are added."""


def open_experts(run: RunState, stage: ExpertsStage) -> None:
    """Opens the engines of ``stage``."""
    for variant in run.engines.declared(ExpertsEngine, stage.engine).variants:
        run.engines.attention(stage.engine, variant)


def run_experts(run: RunState, stage: ExpertsStage) -> None:
    """Computes the output of ``stage`` for all tokens; it must be allocated, as its inputs are.

    A run that is resumed begins the stage anew: an expert's rows lie in all blocks.

    Raises:
        InternalError: The run computes a part of the blocks.
        InputError: A token names an expert twice.
    """
    if run.only is not None:
        raise InternalError(f"stage {stage.name}: an expert's tokens lie in all blocks")
    engine = run.engines.declared(ExpertsEngine, stage.engine)
    hidden, output, share = (run.stores[name] for name in (stage.hidden, stage.output.name, stage.share))
    for tile in range(len(output.array)):
        output.tile(tile)[...] = 0
    index = run.stores[stage.index].rows()
    chosen = chosen_experts(stage.name, index, _real(run, len(index), hidden.length), engine.experts)
    calls = [call for one in chosen for call in one.calls(engine.row_sizes)]
    values, sums, weights = (hidden.rows(), share.rows()), output.rows(), run.engines.weights
    ordered = InOrder(run.crew, lambda places, rows: _add(sums, places, rows), WAITING * run.crew.threads)
    left = _Left(calls)
    counter = run.counters[stage.name]

    def start() -> Callable[[tuple[int, tuple[int, Chosen]]], None]:
        count = counter.worker()
        mixture = Mixture(
            engine, lambda variant: run.engines.attention(engine.name, variant).new_call(), run.backend.tensor
        )

        def call(item: tuple[int, tuple[int, Chosen]]) -> None:
            number, (size, part) = item
            own = [weights.part(name, part.expert) for name in stage.weights]
            ordered.give(number, part.places, mixture.made(size, part, own, values))
            hidden.touch(0, size * engine.width * hidden.array.itemsize)
            output.touch(0, size * engine.width * output.array.itemsize)
            count.calls += 1
            if left.last(part.expert) and run.lets_go:
                weights.let_go_part(stage.weights, part.expert)

        return call

    run.crew.run(enumerate(calls), start)
    run.routed[stage.name] = len(calls)
    run.expert_bytes += len(chosen) * engine.expert_bytes
    run.all_expert_bytes += engine.experts * engine.expert_bytes


def _add(sums: npt.NDArray[Any], places: npt.NDArray[np.int64], rows: npt.NDArray[Any]) -> None:
    sums[places] += rows


class _Left:
    """Counts the calls of each expert that are to be made yet; workers count down side by side."""

    def __init__(self, calls: Sequence[tuple[int, Chosen]]) -> None:
        self._counts = Counter(part.expert for _, part in calls)
        self._lock = threading.Lock()

    def last(self, expert: int) -> bool:
        """Counts one; whether it was the expert's last."""
        with self._lock:
            self._counts[expert] -= 1
            return not self._counts[expert]


def _real(run: RunState, padded: int, length: int) -> npt.NDArray[np.bool_]:
    """Which of the rows are tokens."""
    real = np.arange(padded) < length
    size = run.program.block_size
    for block, used in enumerate(run.packing.used if run.packing is not None else ()):
        real[block * size + used : (block + 1) * size] = False
    return real
