"""The small input of a pack through the target's backend, beside the result that it should have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twoheads.export.engines.tensor_error import relative_error
from twoheads.graphs.errors import InternalError
from twoheads.graphs.serialization.pack_format import BUNDLE, CANARY, Pack
from twoheads.runtime import load
from twoheads.runtime.bundle.pack import read_pack

__all__ = ["EXPECTED", "CanaryRun", "run_canary"]

EXPECTED = "expected"
"""The array of the canary's file that is no input."""


@dataclass(frozen=True, slots=True)
class CanaryRun:
    """What came of it.

    Attributes:
        pack: Whose canary.
        error: How far the result is from the expected one, as a share of its largest magnitude.
        seconds: Of the run, engines open.
        calls: Engine calls.
    """

    pack: Pack
    error: float
    seconds: float
    calls: int

    @property
    def passed(self) -> bool:
        """Whether the error is one that this precision explains."""
        return self.error <= self.pack.canary.limit


def run_canary(folder: Path, threads: int | None = None, backend: str | None = None) -> CanaryRun:
    """Checks the pack in ``folder`` and runs its canary.

    Args:
        folder: A pack.
        threads: Calls at the same time.
        backend: Another one than the pack's, such as the target's emulator.

    Raises:
        BundleError: The pack is damaged or of another device or runtime, or an artifact can't be opened or run.
        InputError: The target's runtime is not installed.
    """
    pack = read_pack(folder)
    with np.load(folder / CANARY, allow_pickle=False) as arrays:
        given = {name: arrays[name] for name in arrays.files if name != EXPECTED}
        expected = arrays[EXPECTED]
    loaded = load(folder / BUNDLE, backend=backend or pack.backend, threads=threads)
    result = loaded.run(given, output=pack.canary.output)
    if result.array is None:
        raise InternalError(f"the canary of {folder} gave no {pack.canary.output}")
    report = result.report
    return CanaryRun(pack, relative_error(result.array, expected), report.seconds, report.engine_calls)
