"""One step in this process: ``python -m tools.gpu.one_step NAME`` prints what it found as a line of JSON."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from dataclasses import dataclass, field

from tools.gpu.steps import STEPS

__all__ = ["Found", "main"]


@dataclass(slots=True)
class Found:
    """What a step tells: facts by words, and rows of a table with its headings first."""

    facts: dict[str, str] = field(default_factory=dict[str, str])
    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])


def main(arguments: list[str]) -> int:
    """Does the step; what goes wrong is the last line on stderr, with exit code 1."""
    (name,) = arguments
    try:
        module = importlib.import_module(f"tools.gpu.{STEPS[name].module}")
        found: Found = getattr(module, name.replace(" ", "_"))()
    except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}", file=sys.stderr)
        return 1
    print(json.dumps({"facts": found.facts, "rows": found.rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
