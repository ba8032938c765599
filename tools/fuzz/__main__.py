"""``python -m tools.fuzz``: mutants for some seconds or a number of them; exit code 1 where one is a fault.

A mutant is found again by its seed and number: ``--seed SEED --only NUMBER --save FOLDER``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

from tools.fuzz.judge import FAULTS, Verdict, judge, result_of
from tools.fuzz.kinds import KINDS, make_bases

__all__ = ["Fuzzer", "main"]

NEEDED = (
    "onnxruntime",
    "tokenizers",
    "twoheads.compiler.frontend.onnx.capture",
    "twoheads.compiler.frontend.torch.capture",
    "twoheads.runtime.runs.session",
)
"""What every mutant needs."""


class Fuzzer:
    """Mutants of one seed.

    Args:
        folder: Where bases and mutants are made.
        seed: What all mutants follow from.
        kinds: Names of the kinds to draw from.
    """

    def __init__(self, folder: Path, seed: str, kinds: list[str]) -> None:
        self._folder = folder
        self._seed = seed
        self._kinds = kinds
        self._bases = folder / "bases"
        self._bases.mkdir()
        result_of(self._make_bases, folder)
        _warm()
        self._expected = {name: result_of(partial(KINDS[name].call, self._base(name)), folder) for name in kinds}

    def _make_bases(self) -> bytes:
        make_bases(self._bases)
        return b""

    def _base(self, name: str) -> Path:
        return self._bases / KINDS[name].base

    def judge(self, number: int, target: Path | None = None) -> tuple[str, Verdict]:
        """What became of mutant ``number``: its kind and file, and the verdict."""
        draw = Random(f"{self._seed} {number}")  # noqa: S311 - it must be found again
        name = draw.choices(self._kinds, [KINDS[kind].weight for kind in self._kinds])[0]
        kind = KINDS[name]
        if target is not None:
            return f"{name}: {kind.make(self._bases, target, draw)}", judge(lambda: kind.call(target), None)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            mutant = Path(scratch) / "mutant"
            file = kind.make(self._bases, mutant, draw)
            return f"{name}: {file}", judge(lambda: kind.call(mutant), self._expected[name])


def _warm() -> None:
    """Imports ``NEEDED`` once, before processes are forked; nothing here starts a thread."""
    for module in NEEDED:
        importlib.import_module(module)


def main(arguments: list[str] | None = None) -> int:
    """Runs mutants, prints what became of them, and returns 1 where one was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--count", type=int, default=10**9, help="at most so many mutants")
    parser.add_argument("--seed", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    parser.add_argument("--kinds", default=",".join(KINDS), help="of: %(default)s")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument("--save", type=Path, help="where the mutant of --only is left")
    given = parser.parse_args(arguments)
    tally: Counter[tuple[str, str]] = Counter()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="twoheads-fuzz-") as scratch:
        fuzzer = Fuzzer(Path(scratch), given.seed, given.kinds.split(","))
        ended = time.monotonic() + given.seconds
        numbers = range(given.count) if given.only is None else (given.only,)
        for number in numbers:
            if time.monotonic() > ended:
                break
            what, verdict = fuzzer.judge(number, given.save if given.only is not None else None)
            tally[what.partition(":")[0], verdict.outcome] += 1
            if verdict.outcome in FAULTS:
                faults += 1
                sys.stdout.write(
                    f"--- seed {given.seed}, number {number}, {what}: {verdict.outcome}\n{verdict.detail}\n"
                )
    for (kind, outcome), count in sorted(tally.items()):
        sys.stdout.write(f"{kind:12} {outcome:10} {count}\n")
    sys.stdout.write(f"seed {given.seed}: {sum(tally.values())} mutants, {faults} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
