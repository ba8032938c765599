"""Runs a bundle for one output after the other: what every comparison with a bundle begins with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress
from twoheads.graphs.errors import InternalError
from twoheads.runtime import LoadedBundle, Report

__all__ = ["Collected", "Question", "RunCount", "collect"]

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Question:
    """What the original and every candidate run on.

    Attributes:
        given: Arguments by name.
        positions: int64 ``[p]``, where logits are compared; ``None`` for everywhere, or for a pooled head.
        rows: Of the hidden states.
    """

    given: Mapping[str, npt.NDArray[Any]]
    positions: npt.NDArray[np.int64] | None
    rows: int


@dataclass(frozen=True, slots=True)
class RunCount:
    """The calls of one run.

    Attributes:
        candidate: What ran, in words. output: What was computed.
        engine_calls: Counted. formula_calls: By the closed formula.
        repeated_calls: Those of ``engine_calls`` that computed rows again, which no formula foretells.
        seconds: Wall time.
    """

    candidate: str
    output: str
    engine_calls: int
    formula_calls: int
    repeated_calls: int
    seconds: float

    @classmethod
    def of(cls, candidate: str, report: Report) -> RunCount:
        """The calls that a run's report counted."""
        counts = report.engine_calls, report.formula_calls, report.repeated_calls
        return cls(candidate, report.output, *counts, report.seconds)

    @property
    def as_foretold(self) -> bool:
        """Whether the counted calls are the formula's, but for the repeated ones."""
        return self.engine_calls - self.repeated_calls == self.formula_calls


@dataclass(frozen=True, slots=True)
class Collected:
    """One output of a bundle, ``[rows, width]``, and the report of its run."""

    output: str
    rows: Array
    report: Report


def collect(
    bundle: LoadedBundle, candidate: str, outputs: Iterable[str], question: Question, progress: Progress
) -> Iterator[Collected]:
    """Runs ``bundle``, called ``candidate``, for every output; one at a time, so that only one is in memory."""
    for output in outputs:
        phase = f"run {candidate}, {output}"
        progress(phase)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report repeats them
            result = bundle.run(
                question.given,
                output=output,
                positions=question.positions if output == "logits" else None,
                progress=lambda done, total, phase=phase: progress(phase, done, total),
            )
        if result.array is None:
            raise InternalError(f"a run of {output} without a sink gives no array")
        yield Collected(output, np.atleast_2d(result.array), result.report)
