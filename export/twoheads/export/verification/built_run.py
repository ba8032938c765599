"""What ``verify --target`` adds: a whole run with every engine as ``build`` gave it to an accelerator's compiler.

It is the arithmetic that the accelerator is asked for, computed by the target's emulator; it is not the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress
from twoheads.export.verification.approximation import ApproximationError, approximation_error
from twoheads.export.verification.perplexity import NextTokenLoss, Perplexity, predicted_tokens
from twoheads.graphs.errors import InternalError
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime import LoadedBundle, Report, load
from twoheads.runtime.backends.emulator import emulator_of

__all__ = ["BuiltError", "OriginalRows", "open_built", "run_built"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OriginalRows:
    """The original's results in float32: all hidden states, logits at the positions, and the pooled vector."""

    hidden: Array
    logits: Array | None
    embedding: Array | None


@dataclass(frozen=True, slots=True)
class BuiltError:
    """The engines that were built for a target, run wholly, against the original in float32.

    Attributes:
        target: Its name. precision: In what it was built.
        compiler: The compiler's name and version.
        runs_on: What computed: a backend of :data:`~twoheads.runtime.backends.emulator.EMULATORS`, never the device.
        distance: Of hidden states and logits.
        embedding_cosine: Between both pooled vectors; ``None`` where the model has no pooling.
        perplexity: Of a language model on the text; ``None`` for other models.
        seconds: Wall time of the last run.
        passed: The counted calls are the formula's, and all numbers are finite. Nothing else is demanded.
    """

    target: str
    precision: str
    compiler: str
    runs_on: str
    distance: ApproximationError
    embedding_cosine: float | None
    perplexity: Perplexity | None
    seconds: float
    passed: bool


def open_built(path: Path, target: str, threads: int | None = None) -> LoadedBundle:
    """The bundle in folder ``path`` with the engines that were built for ``target``, on its emulator.

    Raises:
        InputError: Nothing here runs that target's artifacts, or there are none.
    """
    return load(path, backend=emulator_of(target), threads=threads, check="size")


def run_built(
    built: LoadedBundle,
    target: str,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    original: OriginalRows,
    progress: Progress,
) -> BuiltError:
    """Runs ``built`` (of :func:`open_built`) on the arguments ``given``; logits at ``positions``."""
    entry = built.manifest.targets[RelativePath(target)]
    runs: list[Report] = []
    found: dict[str, Array] = {}
    wanted = {"hidden": original.hidden, "logits": original.logits, "embedding": original.embedding}
    for output in (name for name, rows in wanted.items() if rows is not None):
        at = positions if output == "logits" else None
        found[output], report = _run(built, given, output, at, progress)
        runs.append(report)
    logits = found.get("logits")
    distance = approximation_error(original.hidden, original.logits, found["hidden"], logits)
    cosine = None if original.embedding is None else _cosine(original.embedding, found["embedding"])
    counted = all(run.engine_calls - run.repeated_calls == run.formula_calls for run in runs)
    return BuiltError(
        target=target,
        precision=entry.precision,
        compiler=f"{entry.compiler} {entry.version}",
        runs_on=built.backend,
        distance=distance,
        embedding_cosine=cosine,
        perplexity=_perplexity(built, given, positions, original.logits, logits),
        seconds=runs[-1].seconds,
        passed=counted and all(bool(np.isfinite(rows).all()) for rows in found.values()),
    )


def _run(
    built: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    output: str,
    positions: npt.NDArray[np.int64] | None,
    progress: Progress,
) -> tuple[Array, Report]:
    phase = f"run what was built, {output}"
    progress(phase)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report repeats them
        result = built.run(
            given, output=output, positions=positions, progress=lambda done, total: progress(phase, done, total)
        )
    if result.array is None:
        raise InternalError(f"a run of {output} without a sink gives no array")
    return result.array, result.report


def _cosine(one: Array, other: Array) -> float:
    left, right = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def _perplexity(
    built: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    original: Array | None,
    found: Array | None,
) -> Perplexity | None:
    """``None`` where nothing follows on any position, or the model is no language model."""
    tokens = predicted_tokens(built.program, given)
    if tokens is None or original is None or found is None:
        return None
    losses = [NextTokenLoss(tokens, positions) for _ in range(2)]
    for loss, rows in zip(losses, (original, found), strict=True):
        loss.write(0, rows)
    return Perplexity(losses[0].perplexity, losses[1].perplexity, losses[1].count) if losses[1].count else None
