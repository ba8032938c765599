"""What an engine that holds several stages has in it of the program: which values go where, under which masks.

Such an engine says again what the program says, and holds its sinks and biases as constants. It carries a digest of
that, so that a program that says something else is refused where the bundle is opened: short inputs are computed by
such engines, long ones stage by stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.stages import AttentionStage, Stage

__all__ = ["WIRING", "ReadWeight", "wiring"]

ReadWeight: TypeAlias = Callable[[str], npt.NDArray[Any]]
"""Gives the weight of a name, as the bundle holds it."""

WIRING = "twoheads.wiring"
"""The entry of an engine file's metadata that holds the digest."""


def wiring(stages: Iterable[Stage], weight: ReadWeight) -> str:
    """A digest of the names of the values that ``stages`` read and write, in order, of masks, sinks and biases.

    Args:
        stages: What the engine holds.
        weight: Reads sinks and biases: a few numbers a head.
    """
    digest = hashlib.sha256()
    for stage in stages:
        words = [stage.kind, *stage.inputs, "->", *(value.name for value in stage.outputs)]
        if isinstance(stage, AttentionStage):
            words += [str(stage.mask), str(stage.sinks), str(stage.bias)]
        digest.update("\n".join((*words, "")).encode(errors="surrogateescape"))
        for name in stage.weights if isinstance(stage, AttentionStage) else ():
            digest.update(np.ascontiguousarray(weight(name), np.float32).tobytes())
    return digest.hexdigest()[:32]
