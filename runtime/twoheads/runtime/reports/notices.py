"""What the user of a run should know: data in its report, told once by the call that the user made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import Manifest

__all__ = ["give_notices", "notices"]


def notices(manifest: Manifest, program: Program, length: int) -> tuple[str, ...]:
    """What to tell about a run of ``length`` tokens: that it is not exact, or longer than the model was trained on."""
    told: list[str] = []
    if manifest.approximations:
        told.append(
            f"approximate: compiled with --attention {', '.join(manifest.approximations)}; what the model would have "
            "seen beyond that is missing or estimated"
        )
    trained = program.trained_length
    if trained is not None and length > trained:
        told.append(
            f"{length} tokens exceed the {trained} that {program.name} was trained on; the result is exact, but the "
            "model's own quality may suffer"
        )
    return tuple(told)


def give_notices(told: Iterable[str]) -> None:
    """Warns of each once, where the user's code calls the function that calls this one."""
    for note in dict.fromkeys(told):
        warnings.warn(note, stacklevel=3)
