"""What the files of a job hold, each field checked where it is read: a checksum says who wrote nothing, not who did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.serialization.json_codec import FormatError, from_json
from twoheads.runtime.reports.sampling import StageEstimate

__all__ = ["FIX", "JobContent", "RunJournal", "StagePart", "read_as"]

T = TypeVar("T")

FIX = "start the run again in another folder"


@dataclass(frozen=True, slots=True)
class JobContent:
    """What a job is of, in ``job.json``.

    Attributes:
        identity: What is computed. A run that goes on has the same.
        request: How it was asked for, where the command line did.
    """

    identity: dict[str, Any]
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StagePart:
    """What a checkpoint holds of a stage that is not finished.

    Attributes:
        stage: Its name.
        pieces: Numbers of items, in the order in which they are taken, each with the sha256 of their outputs by name.
        companion: What the stage gathered beside them.
    """

    stage: str
    pieces: tuple[tuple[int, dict[str, str]], ...]
    companion: Any

    @property
    def done(self) -> int:
        """Items that are done."""
        return sum(count for count, _ in self.pieces)


@dataclass(frozen=True, slots=True)
class RunJournal:
    """The last checkpoint of a run.

    Attributes:
        finished_stages: Names, in order.
        part: Of the stage behind them, if it has begun.
        values: The sha256 of every value that a later stage reads.
        rounds: See :class:`~twoheads.runtime.execution.run_state.RunState`.
        estimates: Of sampled attention.
        counters: Calls, repeated calls and seconds by stage.
    """

    finished_stages: tuple[str, ...]
    part: StagePart | None
    values: dict[str, str]
    rounds: int
    estimates: tuple[StageEstimate, ...]
    counters: dict[str, tuple[int, int, float]]

    @property
    def calls(self) -> int:
        """Engine calls so far."""
        return sum(calls for calls, _, _ in self.counters.values())


def read_as(cls: type[T], content: Mapping[str, Any], path: Path) -> T:
    """A file's content as ``cls``.

    Raises:
        TwoheadsError: A field is missing, unknown, or of another type.
    """
    try:
        return from_json(cls, content, path.name)
    except FormatError as error:
        raise TwoheadsError(str(path), f"is damaged: {error}", FIX) from None
