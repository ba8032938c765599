"""How the engines of a bundle that generates are opened: what ``generate`` and ``chat`` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.cli.shared import arguments, options

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = ["EngineOptions"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What runs the engines, and in which precision."""

    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the kernels; one per core by default.")
    ] = None
    backend: options.BackendOption = options.DEFAULT_BACKEND
    precision: options.PrecisionOption = options.Precision.F32
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help='The most memory for weights, e.g. "4GB"; if they need more, it is told what a token costs.',
        ),
    ] = None

    def load(self, bundle: Path) -> LoadedBundle:
        """The bundle, ready to generate.

        Raises:
            TwoheadsError: As :func:`twoheads.runtime.load`.
        """
        from twoheads.runtime import load

        limit = None if self.memory_limit is None else arguments.parse_size(self.memory_limit)
        how = self.precision.value
        return load(bundle, backend=self.backend, precision=how, threads=self.threads, memory_limit=limit)
