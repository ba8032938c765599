"""Progress bars on stderr, shown only where stderr is a terminal."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from twoheads.export.cli.shared.console import seconds_text, stderr_console

__all__ = ["CallProgress", "PhaseProgress"]

logger = logging.getLogger(__name__)


class _Bars:
    """A rich progress display that is silent where stderr is no terminal; a context manager."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class PhaseProgress(_Bars):
    """Shows named phases one after the other: a spinner, or a bar where the phase counts its steps.

    Call it as ``progress(phase)`` or ``progress(phase, done, total)``.
    """

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        super().__init__(Progress(*columns, console=stderr_console(), disable=not sys.stderr.isatty()))
        self._phase: tuple[str, TaskID] | None = None
        self._began = 0.0

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        if self._phase is None or self._phase[0] != phase:
            self._finish()
            self._phase = (phase, self._progress.add_task(phase, total=total or None))
            self._began = time.perf_counter()
        if total:
            self._progress.update(self._phase[1], completed=done, total=total)

    def _finish(self) -> None:
        if self._phase is not None:
            self._progress.update(self._phase[1], completed=1, total=1)
            logger.info("%s: %s", self._phase[0], seconds_text(time.perf_counter() - self._began))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        super().__exit__(kind, error, trace)


class CallProgress(_Bars):
    """Shows the engine calls of a run, or what else a title says, with the time that remains.

    Call it as ``progress(done, total)``, with a new title as a third argument.
    """

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(Progress(*columns, console=stderr_console(), disable=not sys.stderr.isatty()))
        self._task = self._progress.add_task(title, total=None)
        self._told = (title, 0, 0)
        self._began = time.perf_counter()

    def __call__(self, done: int, total: int, title: str | None = None) -> None:
        self._told = (title or self._told[0], done, total)
        self._progress.update(self._task, completed=done, total=total, description=title)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        title, done, total = self._told
        logger.info("%s, %d of %d: %s", title, done, total, seconds_text(time.perf_counter() - self._began))
        super().__exit__(kind, error, trace)
