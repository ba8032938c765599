"""What an engine that holds several stages has in it of the program: which values go where, under which masks.

Such an engine says again what the program says. It carries a digest of that, so that a program that says something else
is refused where the bundle is opened: short inputs are computed by such engines, long ones stage by stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from twoheads.graphs.program.stages import AttentionStage, Stage

__all__ = ["WIRING", "wiring"]

WIRING = "twoheads.wiring"
"""The entry of an engine file's metadata that holds the digest."""


def wiring(stages: Iterable[Stage]) -> str:
    """A digest of the names of the values that ``stages`` read and write, in order, and of masks."""
    digest = hashlib.sha256()
    for stage in stages:
        words = [stage.kind, *stage.inputs, "->", *(value.name for value in stage.outputs)]
        if isinstance(stage, AttentionStage):
            words += [str(stage.mask), str(stage.sinks)]
        digest.update("\n".join((*words, "")).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
