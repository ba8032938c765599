"""Commands killed at random moments: nothing half written is taken for whole, and the next command leaves nothing."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tools.endurance.cases import Case, Work
from tools.endurance.processes import Ended, Kill, descendants_left, in_child, run_command

__all__ = ["Killed", "kill_case"]

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "operation")
"""How a command is killed; the last: by SIGKILL before an operation on files that is drawn. In turns."""

ENDS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130, -2}, "operation": {-9}}
"""How a killed command ends: by its handler, or, where none is set yet, by the signal."""

MOST_IN_A_ROW = 3
"""Of kills before a command may finish."""


@dataclass(slots=True)
class Killed:
    """What became of one command.

    Attributes:
        name: Of the case.
        seconds: Of an undisturbed run.
        operations: On files in it.
        kills: By kind.
        stood: What stood there after a kill: nothing, the old target, the new one, or a step on the way to it.
        finished: Commands that finished after kills, with the bits of an undisturbed one.
        faults: In words; there should be none.
    """

    name: str
    seconds: float
    operations: int
    kills: Counter[str] = field(default_factory=Counter)
    stood: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    faults: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "kills": dict(self.kills), "stood": dict(self.stood)}


class _Cycle:
    """One case in folders of its own, and what it is without a kill."""

    def __init__(self, case: Case, bases: Path, root: Path) -> None:
        self.case = case
        self.work = Work(bases, root)
        self.renew()
        self.before = self.look()
        ended = self._run()
        self.after, self.names = self.look(), self.work.names()
        again = run_command(case.next_words(self.work), self.work)
        if ended.code or again.code or self.look() != self.after or descendants_left():
            raise SystemExit(f"{case.name}: undisturbed it fails\n{ended.err}\n{again.err}")
        self.names_again = self.work.names()
        self.found = Killed(case.name, ended.seconds, ended.operations)

    def renew(self) -> None:
        """Everything as it was before the command."""
        shutil.rmtree(self.work.root, ignore_errors=True)
        for folder in self.work.folders:
            folder.mkdir(parents=True)
        self.case.prepare(self.work)

    def look(self) -> bytes:
        """What stands at the target."""
        return in_child(partial(self.case.look, self.work))

    def _run(self, kill: Kill | None = None, *, again: bool = False) -> Ended:
        words = self.case.next_words(self.work) if again else self.case.words(self.work)
        return run_command(words, self.work, kill)

    def kill(self, draw: random.Random, kind: str, *, again: bool) -> bool:
        """Kills the command once; whether it was killed, and not finished before."""
        if kind == "operation":
            kill = Kill(signal.SIGKILL, operation=draw.randint(1, self.found.operations))
        else:
            kill = Kill(getattr(signal, kind), draw.uniform(0, 1) * self.found.seconds)
        ended = self._run(kill, again=again)
        if ended.hung:
            self.fault(kill, f"did not end, {ended.code}")
        elif ended.code == 0:
            return False
        elif ended.code not in ENDS[kind]:
            self.fault(kill, f"ended with {ended.code}: {ended.err[-600:]}")
        self.found.kills[kind] += 1
        self._judge(kill, handled=ended.code > 0 and not again)
        return True

    def _judge(self, kill: Kill, *, handled: bool) -> None:
        """What stands there after the kill; and, of a first command that saw it coming, what it left."""
        try:
            stands = self.look()
        except RuntimeError as error:
            self.fault(kill, f"half written: {error}")
            return
        known = {self.before: "as before", self.after: "new"}
        if stands not in known and not self.case.grows:
            self.fault(kill, "what stands there is neither the old nor the new")
        self.found.stood[known.get(stands, "a step")] += 1
        if left := descendants_left():
            self.fault(kill, f"processes are left: {left}")
        temporary = [name for name in self.work.names() if name.startswith("temporary/")]
        if handled and temporary:
            self.fault(kill, f"told to end, it left {temporary}")

    def finish(self) -> None:
        """The next command, unkilled: the bits of an undisturbed one, and nothing left."""
        ended = self._run(again=True)
        if ended.code != 0:
            self.fault(None, f"the next command ended with {ended.code}: {ended.err[-600:]}")
            return
        try:
            same = self.look() == self.after
        except RuntimeError as error:
            self.fault(None, f"after the next command: {error}")
            return
        if not same:
            self.fault(None, "after the next command there are other bits")
        names = self.work.names()
        if names not in (self.names, self.names_again):
            self.fault(None, f"left behind: {sorted(set(names) ^ set(self.names))}")
        if left := descendants_left():
            self.fault(None, f"processes are left: {left}")
        self.found.finished += same

    def fault(self, kill: Kill | None, what: str) -> None:
        """Notes one."""
        text = f"{kill or 'next'}: {what}"
        sys.stderr.write(f"FAULT {self.case.name}: {text}\n")
        self.found.faults.append(text)


def kill_case(case: Case, bases: Path, root: Path, *, count: int, seed: int) -> Killed:
    """Kills the command ``count`` times, up to three times before it may finish.

    Args:
        case: Which command.
        bases: What :func:`~tools.endurance.bases.make_bases` made.
        root: A folder for it alone.
        count: Of kills.
        seed: Of the moments.
    """
    draw = random.Random(f"{seed} {case.name}")  # noqa: S311 - no secret
    cycle = _Cycle(case, bases, root)
    kinds = KINDS if cycle.found.operations else KINDS[:-1]  # what writes nothing has no such moment
    while cycle.found.kills.total() < count:
        cycle.renew()
        row = draw.randint(1, MOST_IN_A_ROW)
        for at in range(row):
            made = cycle.found.kills.total()
            if made < count:
                cycle.kill(draw, kinds[made % len(kinds)], again=at > 0)
        cycle.finish()
    return cycle.found
