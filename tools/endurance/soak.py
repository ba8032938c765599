"""Many runs of one process: its memory and its descriptors stay what they are, and its results too."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from tools.endurance.bases import VOCABULARY

__all__ = ["soak"]

LONGEST = 300
WARM = 0.1
"""Share of the runs after which every length has been seen, and memory is what it stays."""
SAMPLES = 20
MOST_SLOPE = 200.0
"""Bytes a run: 20,000 runs of it are 4 MB."""


def soak(bases: Path, count: int, seed: int) -> bytes:
    """Makes ``count`` runs; returns as JSON what they were, samples of memory and descriptors, and faults."""
    from twoheads.runtime import load

    draw = random.Random(seed)  # noqa: S311 - no secret
    bundle = load(bases / "one.bundle", threads=1)
    steps = _Steps(bundle, np.random.default_rng(seed).integers(1, VOCABULARY, LONGEST))
    process, samples = psutil.Process(), []
    every, began = max(1, count // (SAMPLES * 10)), time.monotonic()
    for at in range(1, count + 1):
        steps.take(at, draw)
        if at % every == 0:
            sample = {
                "runs": at,
                "resident": process.memory_info().rss,
                "descriptors": len(os.listdir("/proc/self/fd")),
            }
            samples.append(sample)
    warm = [sample for sample in samples if sample["runs"] >= count * WARM]
    slope = float(np.polyfit([s["runs"] for s in warm], [s["resident"] for s in warm], 1)[0])
    faults = steps.faults
    if slope > MOST_SLOPE:
        faults.append(f"memory grows by {slope:.0f} bytes a run")
    if len({sample["descriptors"] for sample in warm}) > 1:
        faults.append("descriptors are not constant")
    return json.dumps({
        "counts": dict(steps.counts), "samples": samples[:: max(1, len(samples) // SAMPLES)], "slope": slope,
        "warm": int(count * WARM), "seconds": time.monotonic() - began, "faults": faults,
    }).encode()  # fmt: skip


class _Steps:
    """What is done again and again, each result beside that of the first time."""

    def __init__(self, bundle: Any, tokens: np.ndarray[Any, Any]) -> None:
        self._bundle, self._tokens = bundle, tokens
        self._first: dict[tuple[str, int], bytes] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def take(self, at: int, draw: random.Random) -> None:
        """Step ``at``."""
        length = draw.randint(1, LONGEST)
        if at % 20 == 0:
            self._refused(length)
        elif at % 10 == 0:
            self._same("generations", length, self._generate)
        elif at % 10 == 5:
            self._same("contexts", length, self._context)
        else:
            output = draw.choice(("last", "hidden", "logits"))
            self._same(f"runs ({output})", length, lambda n: self._bundle.run(self._tokens[:n], output=output).array)

    def _same(self, what: str, length: int, call: Callable[[int], Any]) -> None:
        found = call(length).tobytes()
        self.counts[what] += 1
        if self._first.setdefault((what, length), found) != found:
            self.faults.append(f"{what} of {length} tokens: other bits than the first time")

    def _generate(self, length: int) -> Any:
        result = self._bundle.generate(self._tokens[:length].tolist(), max_new_tokens=3)
        return np.asarray(result.tokens)

    def _context(self, length: int) -> Any:
        context = self._bundle.open_context()  # dropped, not closed
        context.append(self._tokens[:length].tolist())
        return context.fork().step(1)

    def _refused(self, length: int) -> None:
        from twoheads.graphs.errors import TwoheadsError

        wrong = self._tokens[:length].copy()
        wrong[-1] = VOCABULARY + 5
        try:
            self._bundle.run(wrong)
        except TwoheadsError:
            self.counts["refused"] += 1
        else:
            self.faults.append("a token beyond the vocabulary was taken")
