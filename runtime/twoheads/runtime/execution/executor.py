"""What carries out a run: the host, a device or a cluster, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Pooling
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.variants.packing import Packing
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.sink import Sink
from twoheads.runtime.reports.report import Counted

__all__ = ["Executor", "RunPlan", "Running", "Tick"]

Array = npt.NDArray[Any]
Tick = Callable[[], None]
"""Called now and then while a run computes, in the thread that started it."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is to be run.

    Attributes:
        schedule: Its stages and sizes.
        packing: Where the inputs lie that share the run; ``None`` for one input.
        spilled: Names of the values that live in files.
        job: Keeps all values, and checkpoints; ``None`` for a run that can't be resumed.
        streamed: Whether engines with weights are open for their stage only.
        ahead: Whether each of these is opened while the one before it computes.
        rows: The rows of the hidden states that are taken behind it, if others need not be kept.
    """

    schedule: Schedule
    packing: Packing | None = None
    spilled: frozenset[str] = frozenset()
    job: Job | None = None
    streamed: bool = False
    ahead: bool = False
    rows: npt.NDArray[np.int64] | None = None


class Running(Protocol):
    """A run in progress: its engines are opened, then its body is computed, then its output is taken."""

    restored_calls: int
    """Engine calls of an earlier process, from whose checkpoint the run goes on."""

    @property
    def calls(self) -> int:
        """Engine calls so far, those of an earlier process among them."""
        ...

    def counted(self) -> Counted:
        """What the run has done."""
        ...

    def prepare(self) -> None:
        """Opens the engines that the run needs and that are not open yet."""
        ...

    def body(self, inputs: Mapping[str, Array]) -> None:
        """Computes the body from an array for every input value, shaped as the value with all rows."""
        ...

    def row_value(self, name: str) -> Array:
        """The row value ``name`` of the body."""
        ...

    def embedding(self, pooling: Pooling) -> Array:
        """All hidden states as one vector ``[width]``, float32."""
        ...

    def rows(self, positions: npt.NDArray[np.int64] | None, sink: Sink | None) -> Array | None:
        """Rows of the logits, where the schedule has a head, or of the hidden states: ``[rows, width]``, float32.

        Args:
            positions: Which rows of the hidden states they are or are made of, in order; ``None`` for all.
            sink: Takes them block by block, and ``None`` is returned.
        """
        ...


class Executor(Protocol):
    """Carries out runs, one at a time."""

    variants: bool
    """Whether it runs variants of the bundle's program: fused stages, and several inputs in one run."""
    files: bool
    """Whether values may live in files: spilled ones, and all of a job."""
    threads: int
    """Blocks that it, or each of its workers, computes at the same time."""

    def held_bytes(self, schedule: Schedule) -> int | None:
        """Bytes of values that the machine with the most of them holds; ``None`` where one machine has them all."""
        ...

    def start(self, plan: RunPlan, tick: Tick | None) -> AbstractContextManager[Running]:
        """Begins a run, which ends with the context.

        Raises:
            InputError: The executor can't carry out such a run.
        """
        ...
