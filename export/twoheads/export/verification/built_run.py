"""What ``verify --target`` runs: every engine as ``build`` gave it to an accelerator's compiler.

It is the arithmetic that the accelerator is asked for, computed by the target's emulator; it is not the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.emulator import emulator_of

__all__ = ["BuiltFor", "open_built"]


@dataclass(frozen=True, slots=True)
class BuiltFor:
    """What was built for a target.

    Attributes:
        target: Its name. precision: In what it was built.
        compiler: The compiler's name and version.
        runs_on: What computed: a backend of :data:`~twoheads.runtime.backends.emulator.EMULATORS`, never the device.
    """

    target: str
    precision: str
    compiler: str
    runs_on: str

    @classmethod
    def of(cls, built: LoadedBundle, target: str) -> BuiltFor:
        """What the manifest of :func:`open_built` says about ``target``."""
        entry = built.manifest.targets[RelativePath(target)]
        return cls(target, entry.precision, f"{entry.compiler} {entry.version}", built.backend)


def open_built(path: Path, target: str, threads: int | None = None) -> LoadedBundle:
    """The bundle in folder ``path`` with the engines that were built for ``target``, on its emulator.

    Raises:
        InputError: Nothing here runs that target's artifacts, or there are none.
    """
    return load(path, backend=emulator_of(target), threads=threads, check="size")
