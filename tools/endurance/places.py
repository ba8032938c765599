"""Commands of a user without rights, and without room: one clear error, and nothing left; with room they go through."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from tools.endurance.cases import Case, Work
from tools.endurance.processes import Ended, descendants_left, in_child, run_command

__all__ = ["PLACES", "refuse_case"]

NOBODY = 65534
DISK = 64_000_000
"""Bytes of a small disk."""

PR_SET_KEEPCAPS, PR_CAP_AMBIENT, AMBIENT_RAISE = 8, 47, 2
CAPABILITIES_VERSION, DAC_READ_SEARCH = 0x20080522, 2
"""Linux: the right to read what others own, without which the interpreter itself may be out of reach."""

IGNORED = re.compile(r"warning: |Loading weights|W\d{4} ")
"""Lines that are no errors: ours, and those of torch."""

SHARES = {"no room": 0.0, "room for 10 %": 0.1, "for 50 %": 0.5, "for 90 %": 0.9}
PLACES = ("somebody else's folder", "read-only disk", *SHARES, "full temporary folder", "home of somebody else")


def refuse_case(case: Case, bases: Path, root: Path) -> dict[str, Any]:
    """What became of the command in each of :data:`PLACES`: ``refused`` or ``done``, what it said, and faults."""
    work = Work(bases, root)
    found: dict[str, Any] = {"places": {}, "said": [], "faults": []}
    with _folders(work, case, disk=False):
        before = _size(work.place)
        ended = run_command(case.words(work), work, before=_become_nobody)
        after, need, names = _look(case, work), _size(work.place) - before, work.names()
        if ended.code:
            raise SystemExit(f"{case.name}: undisturbed it fails\n{ended.err}")
    for place in PLACES:
        with _folders(work, case, disk=True):
            _Attempt(case, work, place, need).judge(after, names, found)
        sys.stderr.write(f"{case.name}, {place}: {found['places'][place]}\n")
    return found


class _Attempt:
    """A command in a place where it may not or can't write."""

    def __init__(self, case: Case, work: Work, place: str, need: int) -> None:
        self._case, self._work, self._place = case, work, place
        self._ballast: Path | None = None
        if place == "somebody else's folder":
            _own(work.place, 0)
        elif place == "read-only disk":
            _mount(work.place, "remount,ro")
        elif place == "home of somebody else":
            _own(work.home, 0)
        else:
            disk = work.temporary if place == "full temporary folder" else work.place
            self._ballast = disk / "ballast"
            _fill(self._ballast, int(SHARES.get(place, 0.0) * need))

    def _mend(self) -> None:
        """Gives it what it needs."""
        if self._place == "read-only disk":
            _mount(self._work.place, "remount,rw")
        if self._ballast is not None:
            self._ballast.unlink()
        for folder in self._work.folders:
            _own(folder, NOBODY)

    def _names(self) -> set[str]:
        return {name for name in self._work.names() if not name.endswith("/ballast")}

    def judge(self, after: bytes, names: list[str], found: dict[str, Any]) -> None:
        """Runs it, and notes what became of it."""
        there = self._names()
        ended = run_command(self._case.words(self._work), self._work, before=_become_nobody)
        faults = [*_faults_of(ended), *(f"a process is left: {left}" for left in descendants_left())]
        new = {name for name in self._names() ^ there if not name.startswith(self._case.keeps)}
        if ended.code and new:
            faults.append(f"left or lost: {sorted(new)}")
        if ended.code:
            found["said"] += [line.replace(str(self._work.root), "") for line in _error_lines(ended)]
            self._mend()
            again = run_command(self._case.next_words(self._work), self._work, before=_become_nobody)
            if again.code:
                faults.append(f"with room it ended with {again.code}: {again.err[-300:]}")
        if not faults and _look(self._case, self._work) != after:
            faults.append("other bits")
        if not faults and set(names) != self._names():
            faults.append(f"left behind: {sorted(set(names) ^ self._names())}")
        found["places"][self._place] = "fault" if faults else "refused" if ended.code else "done"
        found["faults"] += [f"{self._place}: {fault}" for fault in faults]


def _error_lines(ended: Ended) -> list[str]:
    """What was said but for warnings and bars of progress."""
    lines = [line.rpartition("\r")[2] for line in ended.err.splitlines()]
    return [line for line in lines if line.strip() and not IGNORED.match(line)]


def _faults_of(ended: Ended) -> list[str]:
    lines = _error_lines(ended)
    if ended.code == 0:
        return [f"said {lines}"] if any("error" in line for line in lines) else []
    faults = [] if ended.code == 1 else [f"ended with {ended.code}: {ended.err[-500:]}"]
    if sum(line.startswith("error: ") for line in lines) != 1 or len(lines) > 2:
        faults.append(f"not one error and its fix: {lines[-5:]}")
    return faults


def _look(case: Case, work: Work) -> bytes:
    return in_child(partial(case.look, work))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _own(folder: Path, user: int) -> None:
    """Gives a folder and what is in it to ``user``, who alone may write there."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def _folders(work: Work, case: Case, *, disk: bool) -> Generator[None]:
    """The folders of a command, two of them small disks; gone afterwards."""
    shutil.rmtree(work.root, ignore_errors=True)
    for folder in work.folders:
        folder.mkdir(parents=True)
    disks = (work.place, work.temporary) if disk else ()
    mounted = []
    try:
        for folder in disks:
            _mount(folder, f"size={DISK}")
            mounted.append(folder)
        case.prepare(work)
        for folder in work.folders:
            _own(folder, NOBODY)
        yield
    finally:
        for folder in mounted:
            subprocess.run(["umount", folder], check=True)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def _fill(ballast: Path, leave: int) -> None:
    """Fills a disk but for ``leave`` bytes."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(ballast.parent).free) > leave:
            file.write(bytes(min(1 << 20, max(1, free - leave))))


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _become_nobody() -> None:
    """This process, and what it starts, is a user's who owns nothing and may read everything."""
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    mine = 1 << DAC_READ_SEARCH
    sets = (_Sets * 2)(_Sets(mine, mine, mine), _Sets(0, 0, 0))
    if system.capset(ctypes.byref(_Header(CAPABILITIES_VERSION, 0)), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    system.prctl(PR_CAP_AMBIENT, AMBIENT_RAISE, DAC_READ_SEARCH, 0, 0)
