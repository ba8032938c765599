"""``python -m tools.fuzz``: mutants for some seconds or a number of them; exit code 1 where one is a fault.

A mutant is found again by its seed and number: ``--seed SEED --only NUMBER --save FOLDER``.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from pathlib import Path

from tools.fuzz.corpus import CORPUS
from tools.fuzz.fuzzer import Fuzzer
from tools.fuzz.judge import FAULTS
from tools.fuzz.kinds import KINDS
from tools.fuzz.tally import Tally

__all__ = ["main"]

EVERY = 100
"""Mutants after which counts are kept: a portion that is stopped has lost no more."""


def main(arguments: list[str] | None = None) -> int:
    """Runs mutants, prints what became of them, and returns 1 where one was a fault."""
    given = _arguments().parse_args(arguments)
    tally = Tally()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="twoheads-fuzz-") as scratch:
        fuzzer = Fuzzer(Path(scratch), given.seed, given.kinds.split(";"))
        if given.save is not None:
            sys.stdout.write(f"{fuzzer.make(given.only, given.save)}\n")
        faults += _replay(fuzzer, given.kinds.split(";")) if given.only is None and not given.first else 0
        ended = time.monotonic() + given.seconds
        for number in range(given.first, given.first + given.count) if given.only is None else (given.only,):
            if time.monotonic() > ended:
                break
            began = time.monotonic()
            kind, file, verdict = fuzzer.judge(number)
            spent = time.monotonic() - began
            tally.add(kind, verdict, spent)
            if verdict.outcome in FAULTS or given.verbose:
                faults += verdict.outcome in FAULTS
                where = f"--- seed {given.seed}, number {number}, {kind}: {file}: {verdict.outcome}"
                where += f" in {spent:.2f} s, {verdict.grown >> 20} MiB"
                sys.stdout.write(f"{where}\n{verdict.detail}\n")
                sys.stdout.flush()
            if tally.total % EVERY == 0 and given.runs is not None:
                tally.append(given.runs, seed=given.seed)
                tally = Tally()
    if given.runs is not None:
        tally.append(given.runs, seed=given.seed)
    sys.stdout.write("".join(line + "\n" for line in tally.lines()))
    sys.stdout.write(f"seed {given.seed}: {tally.total} mutants, {faults} faults\n")
    return 1 if faults else 0


def _replay(fuzzer: Fuzzer, kinds: list[str]) -> int:
    """Replays the corpus; the number of cases of which something else became than must."""
    cases = [case for case in CORPUS if case.kind in kinds]
    faults = 0
    for case in cases:
        verdict = fuzzer.replay(case)
        if verdict.outcome != case.outcome:
            faults += 1
            said = f"{verdict.outcome}, not {case.outcome}: {verdict.detail}"
            sys.stdout.write(f"--- corpus, {case.kind}: {case.name}: {said}\n")
    sys.stdout.write(f"corpus: {len(cases)} cases, {faults} faults\n")
    return faults


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--count", type=int, default=10**9, help="at most so many mutants")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seed", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    parser.add_argument("--kinds", default=";".join(KINDS), help="of: %(default)s")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument("--save", type=Path, help="where the mutant of --only is left")
    parser.add_argument("--runs", type=Path, help="a file to which the counts are added, for tools.fuzz.tally")
    parser.add_argument("--verbose", action="store_true", help="tell of every mutant")
    return parser


if __name__ == "__main__":
    sys.exit(main())
