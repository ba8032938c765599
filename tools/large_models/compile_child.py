"""Compiles a model in this process and prints, as JSON, the peak of its memory and the time of every phase.

python -m tools.large_models.compile_child MODEL BUNDLE [float32|int8|int4]
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["PhaseMeter"]

INTERVAL = 0.005
"""Seconds between two looks at the memory."""


class PhaseMeter:
    """A thread that looks at this process's resident memory, and notes the most of each phase."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._began = time.perf_counter()
        self._name = "imports"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def enter(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Begins a phase, or goes on with it."""
        if phase != self._name:
            self._look()
            self._entry()["seconds"] += time.perf_counter() - self._began
            self._name, self._began = phase, time.perf_counter()

    def close(self) -> dict[str, dict[str, float]]:
        """Ends the last phase; bytes and seconds by phase."""
        self.enter("")
        self._stop.set()
        self._thread.join()
        self.phases.pop("", None)
        return self.phases

    def _entry(self) -> dict[str, float]:
        return self.phases.setdefault(self._name, {"seconds": 0.0, "peak_bytes": 0, "own_bytes": 0})

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        found = resident()
        entry = self._entry()
        entry["peak_bytes"] = max(entry["peak_bytes"], found["VmRSS"])
        entry["own_bytes"] = max(entry["own_bytes"], found["RssAnon"])


def resident() -> dict[str, int]:
    """Bytes of this process's memory: all that is resident, and what of it is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon")}


def main() -> None:
    """See the module's text."""
    model, bundle, weights = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["float32"])[0]
    meter = PhaseMeter()
    from twoheads.compiler import compile_model
    from twoheads.export import quantise_weights, write_bundle

    compiled = compile_model(model, progress=meter.enter)
    if weights != "float32":
        meter.enter("quantising the weights")
        compiled = quantise_weights(compiled, weights)
    write_bundle(compiled, bundle, progress=meter.enter)
    phases: dict[str, Any] = meter.close()
    sys.stdout.write(json.dumps(phases) + "\n")


if __name__ == "__main__":
    main()
