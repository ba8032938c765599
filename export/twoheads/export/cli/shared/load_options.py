"""How a bundle is opened: the options that ``run``, ``batch`` and others share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_note

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = ["Check", "CheckOption", "LoadOptions", "Pack", "PackOption", "Threads"]


class Check(StrEnum):
    """How thoroughly a bundle's files are checked before they are used."""

    READ = "read"
    FULL = "full"
    SIZE = "size"


class Pack(StrEnum):
    """Whether short inputs share the blocks of one run."""

    AUTO = "auto"
    OFF = "off"


Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="How many blocks to compute at the same time; one per core by default."),
]
CheckOption = Annotated[
    Check,
    typer.Option(
        "--check",
        help="Which files to compare with their sha256. read: all, weights as they are read; full: all before "
        "anything runs; size: none, only their sizes.",
    ),
]
PackOption = Annotated[
    Pack, typer.Option("--pack", help="auto: short inputs share engine calls; off: every input has its own.")
]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What opens a bundle's engines, and within which limits they run."""

    threads: Threads = None
    backend: options.BackendOption = options.DEFAULT_BACKEND
    precision: options.PrecisionOption = options.Precision.F32
    tune: options.TuneOption = options.Tune.OFF
    memory_limit: options.MemoryLimit = None
    device_memory_limit: options.DeviceMemoryLimit = None
    check: CheckOption = Check.READ

    def load(self, bundle: Path, *, spill: Path | None = None) -> LoadedBundle:
        """The bundle, ready to run; values that do not fit go to files in ``spill``.

        Raises:
            TwoheadsError: As :func:`twoheads.runtime.load`.
        """
        from twoheads.runtime import load

        limits = (self.memory_limit, self.device_memory_limit)
        memory, device = (None if limit is None else arguments.parse_size(limit) for limit in limits)
        loaded = load(
            bundle,
            backend=self.backend,
            precision=self.precision.value,
            threads=self.threads,
            check=self.check.value,
            memory_limit=memory,
            spill=spill,
            device_memory_limit=device,
            tune=self.tune.value,
        )
        if self.tune != options.Tune.OFF:
            print_note(f"key tiles of {loaded.program.key_tile} tokens, by --tune {self.tune.value}")
        return loaded
