"""What became of mutants, counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.fuzz.judge import Verdict

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counts by kind, outcome and rule.

    Attributes:
        counts: By kind, outcome, and the rule of a difference.
        seconds: The most that one took, by kind.
        grown: The most bytes that a process grew by, by kind.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    grown: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, kind: str, verdict: Verdict, seconds: float) -> None:
        """Counts one mutant."""
        self.counts[kind, verdict.outcome, verdict.detail if verdict.outcome == "different" else ""] += 1
        self.seconds[kind] = max(self.seconds.get(kind, 0.0), seconds)
        self.grown[kind] = max(self.grown.get(kind, 0), verdict.grown)

    def append(self, path: Path, **about: Any) -> None:
        """Adds the counts to a file of runs, a line each."""
        rows = [[*key, count] for key, count in sorted(self.counts.items())]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, "counts": rows, "seconds": self.seconds, "grown": self.grown}) + "\n")

    @property
    def total(self) -> int:
        """Mutants so far."""
        return self.counts.total()

    def lines(self) -> list[str]:
        """For whoever waits."""
        return [
            f"{kind:20} {outcome:12} {count:6} {rule}" for (kind, outcome, rule), count in sorted(self.counts.items())
        ]
