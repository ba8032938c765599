"""Draws mutants of one seed and judges them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random

from tools.fuzz.bases import make_bases
from tools.fuzz.calls import quiet
from tools.fuzz.corpus import Case
from tools.fuzz.differences import explained, places_of
from tools.fuzz.judge import MODULES, Answer, Verdict, judge, measure
from tools.fuzz.kinds import KINDS, Kind
from tools.fuzz.watch import TRAP, Watch, set_trap

__all__ = ["Fuzzer"]

NEEDED = (
    "gguf",
    "llguidance",
    "onnxruntime",
    "tokenizers",
    "twoheads.compiler.frontend.onnx.capture",
    "twoheads.compiler.frontend.torch.capture",
    "twoheads.export.cli.app",
    "twoheads.runtime.documents.document_run",
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
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        self.bases = folder / "bases"
        self.bases.mkdir()
        measure(self._make_bases, folder)
        set_trap(folder, self.bases)
        _import(NEEDED)
        threads = _threads()
        self._expected = {name: self._measured(KINDS[name]) for name in kinds}
        if _threads() > threads:
            raise RuntimeError("a module that a base needs has started a thread")

    def _make_bases(self) -> Answer:
        make_bases(self.bases, {KINDS[name].base for name in self._kinds})
        return Answer(b"")

    def _measured(self, kind: Kind) -> Answer:
        """What a copy of the base gives, and takes."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            copy = self._place(Path(scratch)) / "mutant"
            kind.copy(self.bases, copy)
            answer = measure(partial(quiet(kind.call), copy), self._folder)
        _import((self._folder / MODULES).read_text().split("\n"))
        return answer

    def _place(self, scratch: Path) -> Path:
        (scratch / TRAP).symlink_to(self._folder / TRAP)
        (scratch / "temporary").mkdir()
        return scratch

    def make(self, number: int, folder: Path) -> tuple[str, str]:
        """Mutant ``number`` in ``folder``: its kind and its mutated file."""
        draw = Random(f"{self._seed} {number}")  # noqa: S311 - it must be found again
        name = draw.choices(self._kinds, [KINDS[kind].weight for kind in self._kinds])[0]
        return name, KINDS[name].make(self.bases, folder, draw)

    def judge(self, number: int) -> tuple[str, str, Verdict]:
        """What became of mutant ``number``: its kind and file, and the verdict."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            mutant = self._place(Path(scratch)) / "mutant"
            name, file = self.make(number, mutant)
            places = places_of(name, self.bases / KINDS[name].base / file, mutant / file)
            return name, file, explained(name, places, self.verdict(name, mutant))

    def replay(self, case: Case) -> Verdict:
        """What became of a case of the corpus."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            mutant = self._place(Path(scratch)) / "mutant"
            KINDS[case.kind].copy(self.bases, mutant)
            case.change(mutant)
            return self.verdict(case.kind, mutant)

    def verdict(self, name: str, mutant: Path) -> Verdict:
        """What becomes of the folder ``mutant``, one of the kind ``name``."""
        temporary = mutant.parent / "temporary"
        watch = Watch((mutant, temporary), (self._folder / TRAP, Path("/etc/passwd")))

        def call() -> Answer:
            tempfile.tempdir = str(temporary)
            return quiet(KINDS[name].call)(mutant)

        return judge(call, self._expected[name], watch)


def _import(modules: Iterable[str]) -> None:
    """Imports modules here, so that no process that is forked has to."""
    for module in modules:
        if module not in sys.modules:
            with contextlib.suppress(Exception):  # made by other modules, not found by a name
                importlib.import_module(module)


def _threads() -> int:
    """Threads of this process: what is forked lacks them, and may wait for them for ever. ONNX Runtime has one."""
    return len(list(Path("/proc/self/task").iterdir()))
