"""Measures one case: all contenders loaded, each in its process, and then one run at a time, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from tools.bench.cases import Case
from tools.bench.contenders import Setting
from tools.bench.inputs import HEAD_DIM, Q_HEADS
from tools.bench.process import ContenderError, ContenderProcess

__all__ = ["measure_case"]

WARM_TOKENS = 512
"""Of the first run, which is not measured; its result is compared with the others'. More than a block of ours, so that
it opens the engines of longer inputs, and not those of one block, which pack the weights once more."""

TIMEOUT = 1800.0
"""Seconds that a contender may take to load, or to run once."""

PAUSE = 0.3
"""Seconds before a run, in which the threads of the last contender stop spinning."""

PEAK = "peak"

Answer: TypeAlias = dict[str, Any]
Round: TypeAlias = dict[str, Answer]
Say: TypeAlias = Callable[[str], None]


class _Field:
    """The contenders that are still in, and why others are not. Nobody computes while another one does."""

    def __init__(self, say: Say) -> None:
        self.inside: list[ContenderProcess] = []
        self.reasons: dict[str, str] = {}
        self._say = say

    def enter(self, process: ContenderProcess) -> None:
        """Waits until a new contender is loaded."""
        self.inside.append(process)
        self._try(process, lambda newcomer: newcomer.wait(TIMEOUT))

    def each(self, command: Answer) -> Round:
        """Every contender's answer, by name, one after the other; who fails is out."""
        answers = {process.name: self.ask(process, command) for process in [*self.inside]}
        return {name: answer for name, answer in answers.items() if answer is not None}

    def ask(self, process: ContenderProcess, command: Answer) -> Answer | None:
        """One contender's answer; ``None`` if it fails and is out."""
        return self._try(process, lambda one: one.ask(command, TIMEOUT))

    def _try(self, process: ContenderProcess, ask: Callable[[ContenderProcess], Answer]) -> Answer | None:
        time.sleep(PAUSE)
        try:
            return ask(process)
        except ContenderError as error:
            self._say(f"  {process.name}: {error}")
            self.reasons[process.name] = str(error)
            self.inside.remove(process)
            process.stop()
            return None


def measure_case(
    case: Case,
    paths: Mapping[str, str],
    threads: int,
    say: Say,
    start: Callable[[str, Setting], ContenderProcess] = ContenderProcess,
) -> dict[str, Any]:
    """The case's figures, as the JSON has them.

    Args:
        case: What to measure.
        paths: What was prepared for its model.
        threads: Of every contender.
        say: Takes a line about what goes on.
        start: Starts a contender by name.
    """
    setting = Setting(threads, case.vocabulary, max(case.lengths), case.block_size, dict(paths))
    peaks: list[float] = []
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        field = _Field(say)
        for name in (PEAK, *case.contenders):
            field.enter(stack.enter_context(start(name, setting)))
        differences = _warm(case, field)
        say(f"  ready: {', '.join(process.name for process in field.inside)}")
        for length in case.lengths:
            rounds = [field.each({"do": "run", "length": length}) for _ in range(case.repeats)]
            peaks += [answers[PEAK]["detail"]["flops_per_second"] for answers in rounds if PEAK in answers]
            rows += [_row(name, length, rounds, field.reasons) for name in case.contenders]
            say(f"  N = {length}: {_summary(rows[-len(case.contenders) :])}")
    return {
        "title": case.title,
        "question": case.question,
        "contenders": list(case.contenders),
        "threads": threads,
        "repeats": case.repeats,
        "block_size": case.block_size,
        "peak_flops_per_second": median(peaks) if peaks else None,
        "differences": differences,
        "rows": [{**row, "flops": _flops(case, row)} for row in rows],
    }


def _warm(case: Case, field: _Field) -> dict[str, float]:
    """Runs everybody once; how far results are from ours: the largest difference by the largest magnitude."""
    length = min(WARM_TOKENS, *case.lengths)
    with tempfile.TemporaryDirectory(prefix="twoheads-bench-") as folder:
        results: dict[str, Any] = {}
        for process in [*field.inside]:
            file = Path(folder, f"{process.name}.npy")
            if field.ask(process, {"do": "result", "length": length, "save": str(file)}) and file.exists():
                results[process.name] = np.load(file)
    ours = results.pop(case.contenders[0], None)
    if ours is None:
        return {}
    scale = float(np.abs(ours).max())
    return {name: float(np.abs(results[name] - ours).max()) / scale for name in case.contenders if name in results}


def _row(name: str, length: int, rounds: list[Round], reasons: Mapping[str, str]) -> dict[str, Any]:
    """A contender at one length: all times, and memory and details of the median run; or why there are none."""
    runs = sorted((answers[name] for answers in rounds if name in answers), key=lambda run: run["seconds"])
    row: dict[str, Any] = {"contender": name, "length": length}
    if not runs:
        return {**row, "reason": reasons[name]}
    return {
        **row,
        "seconds": median(run["seconds"] for run in runs),
        "all_seconds": [run["seconds"] for run in runs],
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "detail": runs[(len(runs) - 1) // 2]["detail"],
    }


def _flops(case: Case, row: Mapping[str, Any]) -> int | None:
    """Floating-point operations of matrix products that the row's time is set against; ``None`` if nobody counts.

    Of attention alone those that causal attention needs, for every contender; of models those that our schedule has.
    """
    length: int = row["length"]
    if case.model == "attention":
        return 2 * Q_HEADS * HEAD_DIM * length * (length + 1)
    if row["contender"] != "ours" or "detail" not in row:
        return None
    flops: int = row["detail"]["flops"]
    return flops


def _summary(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['contender']} {row['seconds']:.3g} s" for row in rows if "seconds" in row)
