"""Threads that take the independent pieces of one stage from a shared queue."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

__all__ = ["TICK_SECONDS", "Crew", "Stopped", "available_threads"]

T = TypeVar("T")

TICK_SECONDS = 0.1
"""How often the caller looks up to report progress."""


class Stopped(Exception):  # noqa: N818 - not an error, a request
    """Raised inside a worker whose crew was told to stop; the crew raises what stopped it instead."""


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """``threads`` workers for one run. An error in one of them, or an interrupt of the caller, stops all of them.

    Args:
        threads: Workers.
        tick: Called by the caller's thread every :data:`TICK_SECONDS` while it waits, and at the end of each stage.
    """

    def __init__(self, threads: int, tick: Callable[[], None] | None = None) -> None:
        self.threads = threads
        self._tick = tick
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="twoheads")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def stopped(self) -> bool:
        """Whether workers should give up."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raises :class:`Stopped` if workers should give up; called between engine calls."""
        if self._stop.is_set():
            raise Stopped

    def run(
        self,
        items: Iterable[T],
        start: Callable[[], Callable[[T], None]],
        pause: Callable[[], bool] | None = None,
        *,
        alone: bool = False,
    ) -> int:
        """Works off ``items``, taken in order; returns how many are left: none, unless it was to pause.

        Args:
            items: The pieces.
            start: Called once in every worker: prepares its buffers and returns what it does with an item.
            pause: Asked after each item; a worker that hears yes takes no more. So every worker does one at least.
            alone: One worker takes them all, so that each is done before the next one begins.

        Raises:
            BaseException: What a worker raised first, or what interrupted the caller, after all workers have stopped.
        """
        queue = deque(items)
        workers = 1 if alone else min(self.threads, len(queue))
        first_error: list[BaseException] = []

        def work() -> None:
            try:
                do = start()
                while True:
                    self.check()
                    try:
                        item = queue.popleft()
                    except IndexError:
                        return
                    do(item)
                    if pause is not None and pause():
                        return
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - also KeyboardInterrupt and SystemExit: the caller must hear of them
                first_error.append(error)
                self._stop.set()

        if len(queue) == 1:  # waking a thread and being woken by it would take longer than a small engine
            work()
            if self._tick:
                self._tick()
        else:
            self._in_threads(work, workers)
        if first_error:
            raise first_error[0]
        return len(queue)

    def _in_threads(self, work: Callable[[], None], workers: int) -> None:
        futures = [self._pool.submit(work) for _ in range(workers)]
        try:
            self._wait(futures)
        except BaseException:
            self._stop.set()
            wait(futures)
            raise

    def _wait(self, futures: list[Future[None]]) -> None:
        pending = set(futures)
        while pending:
            pending = wait(pending, timeout=TICK_SECONDS if self._tick else None).not_done
            if self._tick:
                self._tick()
