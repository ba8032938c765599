"""One contender in a process of its own: reads commands as lines of JSON from stdin, answers with lines of JSON.

``{"do": "result", "length": N, "save": FILE.npy}`` runs once and saves the last hidden states, ``{"do": "run",
"length": N}`` measures one run. The first answer comes when the contender is loaded. Every answer has ``error``,
``None`` or what went wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tools.bench.contenders import CONTENDERS, Contender, Setting
from twoheads.runtime.reports.peak_memory import peak_memory

__all__ = ["main", "serve"]


def main() -> int:
    """Serves the contender ``argv[1]``, made from the setting ``argv[2]`` (JSON), until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    setting = Setting(**json.loads(sys.argv[2]))
    serve(lambda: CONTENDERS[sys.argv[1]](setting), sys.stdin, answers)
    return 0


def serve(make: Callable[[], Contender], commands: TextIO, answers: TextIO) -> None:
    """Makes the contender and answers every command; after an error it goes on with the next."""
    made: list[Contender] = []

    def load() -> dict[str, Any]:
        made.append(make())
        _give_back_memory()
        return {}

    if _answer(load, answers):
        for line in commands:
            _answer(partial(_do, made[0], json.loads(line)), answers)


def _answer(do: Callable[[], dict[str, Any]], answers: TextIO) -> bool:
    """Writes what ``do`` tells, or why it can't; returns whether it could."""
    told: dict[str, Any] = {"error": None}
    try:
        told |= do()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the contender's result
        told["error"] = _reason(error)
    answers.write(json.dumps(told) + "\n")
    answers.flush()
    return told["error"] is None


def _do(contender: Contender, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "result":
        array = contender.result(command["length"])
        if array is not None:
            np.save(command["save"], array)
        return {"saved": array is not None}
    _forget_peak_memory()
    timing = contender.run(command["length"])
    return {**asdict(timing), "peak_bytes": peak_memory()}


def _reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, ImportError):
        return f"not installed ({error})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def _give_back_memory() -> None:
    """Returns what loading has left behind, so that the memory of a run is that of the model and the run."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak_memory() -> None:
    """Lowers the high-water mark to what is resident now, where the system lets us; else it is that of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
