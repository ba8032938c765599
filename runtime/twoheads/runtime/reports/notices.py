"""What the user of a run should know: data in its report, told once by the call that the user made."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from types import FrameType

from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import Manifest

__all__ = ["give_notices", "notices"]

OURS = ("twoheads.", "functools")
"""Modules that no user calls from: ours, and what computes a cached property of ours."""


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
    """Warns of each once, where the user's code calls ours."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None and _module(frame).startswith(OURS):
        frame = frame.f_back
    for note in dict.fromkeys(told):
        if frame is None:  # in an interpreter that has no frames
            warnings.warn(note, stacklevel=1)
            continue
        registry = frame.f_globals.setdefault("__warningregistry__", {})
        warnings.warn_explicit(
            note, UserWarning, frame.f_code.co_filename, frame.f_lineno, _module(frame), registry=registry
        )


def _module(frame: FrameType) -> str:
    """Whose code it runs."""
    return str(frame.f_globals.get("__name__"))
