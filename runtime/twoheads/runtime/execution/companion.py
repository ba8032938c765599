"""What a run that keeps checkpoints and its stages ask of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from twoheads.graphs.program.program import Stage

__all__ = ["Checkpointing", "Companion", "Tokens"]

T = TypeVar("T")
Tokens = Callable[[T], tuple[int, int]]
"""The tokens ``(start, stop)`` of a stage's outputs that an item of its work writes."""


class Companion(Protocol):
    """What a stage gathers beside its outputs, such as statistics or a file that it writes."""

    def save(self) -> Any:
        """What it has gathered, as JSON; a file that this speaks of is on the disk."""
        ...

    def restore(self, saved: Any, done: int) -> bool:
        """Takes back what it had gathered of the stage's first ``done`` items.

        Returns:
            ``False`` where that is gone, and the stage must begin anew.

        Raises:
            FormatError: It is nothing that :meth:`save` gave behind so many items.
        """
        ...


class Checkpointing(Protocol):
    """What a run asks of its checkpoints, see :mod:`twoheads.runtime.execution.checkpoints`."""

    def restore(self) -> frozenset[str]:
        """Opens what the last checkpoint holds, and returns the stages that need not run again."""
        ...

    def is_partly_done(self, stage: Stage) -> bool:
        """Whether the stage's outputs hold items of an earlier process."""
        ...

    def work(
        self,
        stage: Stage,
        items: Iterable[T],
        start: Callable[[], Callable[[T], None]],
        *,
        tokens: Tokens[T],
        companion: Companion | None = None,
        alone: bool = False,
    ) -> None:
        """Works off the stage's items that are not done yet."""
        ...

    def finish(self, stage: Stage, released: Iterable[str]) -> None:
        """Makes the end of ``stage`` a checkpoint; afterwards the values ``released`` may go."""
        ...
