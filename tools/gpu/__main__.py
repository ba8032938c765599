"""Installs, checks and measures on this machine's NVIDIA GPU; writes docs/results/gpu.json and gpu.md.

``python3 -m tools.gpu`` starts from a bare checkout, with the standard library alone, and takes eight minutes at most:
an environment in ``.cache/gpu`` (which sees the packages that this Python has, and gets those that are missing), then
the steps of :mod:`tools.gpu.steps`, each a process of its own with a time limit. A step that fails is reported, and the
others go on; the page is written in any case. ``--wheels DIR`` installs from a folder, without network. ``--steps``
runs some of them, ``--minutes`` changes the whole limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.gpu.environment import prepare
from tools.gpu.page import render
from tools.gpu.runner import Outcome, run_step
from tools.gpu.steps import STEPS
from tools.machine import machine

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "gpu.md"
MINUTES = 8.0
INSTALL_SHARE = 0.4
"""Of the time, for packages: what is not there by then is missing, and the steps that need it say so."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Does all of it; exit code 1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels in the place of the network")
    parser.add_argument("--python", type=Path, help="an environment that has everything: nothing is installed")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    python, installed = options.python, Outcome("install", seconds=0.0, facts={"packages": "those of --python"})
    if python is None:
        python, installed = prepare(ROOT, options.wheels, 60 * options.minutes * INSTALL_SHARE)
    outcomes = [_told(installed)]
    outcomes += [_told(run_step(python, ROOT, name, STEPS[name], end - time.monotonic())) for name in options.steps]
    figures = {"machine": machine(()), "steps": [asdict(outcome) for outcome in outcomes]}
    options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    options.out.write_text(render(figures), encoding="utf-8")
    return int(any(outcome.problem is not None for outcome in outcomes))


def _told(outcome: Outcome) -> Outcome:
    print(f"{outcome.name}: {outcome.problem or 'done'} ({outcome.seconds:.0f} s)", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
