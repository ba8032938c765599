"""How the engines of a bundle that generates are opened: what ``generate`` and ``chat`` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.cli.shared import options

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = ["EngineOptions"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What runs the engines, and in which precision."""

    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of the kernels; all cores if not given.")] = (
        None
    )
    backend: options.BackendOption = options.DEFAULT_BACKEND
    precision: options.PrecisionOption = options.Precision.F32

    def load(self, bundle: Path) -> LoadedBundle:
        """The bundle, ready to generate.

        Raises:
            TwoheadsError: As :func:`twoheads.runtime.load`.
        """
        from twoheads.runtime import load

        return load(bundle, backend=self.backend, precision=self.precision.value, threads=self.threads)
