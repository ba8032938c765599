"""What a lossy precision costs the whole model, on the end of a text: told, and refused if it is too much."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.accelerators.calibration import PARTS
from twoheads.export.accelerators.compiler_process import Compiler
from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.accelerators.target_files import link_file, write_target
from twoheads.export.bundle.writer import write_json
from twoheads.export.verification.perplexity import perplexity, predicted_tokens
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.serialization.bundle_format import MANIFEST, TargetEntry
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.emulator import EMULATORS, EmulatorBackend, measures
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["MOST", "Loss", "loss_by", "measure_loss", "refuse_loss", "refuse_unmeasured"]

logger = logging.getLogger(__name__)

MOST = 0.05
"""The largest share that may be lost unasked."""

TOKENS = 512
"""Of the run that is measured, at most."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What was lost.

    Attributes:
        measure: ``perplexity`` of a language model, else the distance of ``hidden states``.
        tokens: Of the run.
        before, after: The perplexity in float32 and as built; of hidden states 0 and the norm of the difference as a
            share of the norm.
        share: By how much more than before the perplexity is, or that distance.
    """

    measure: str
    tokens: int
    before: float
    after: float

    @property
    def share(self) -> float:
        """What is lost, 0.05 for 5 %."""
        return self.after / self.before - 1 if self.before else self.after


def measure_loss(
    bundle: Bundle, name: str, entry: TargetEntry, scratch: Path, compiler: Compiler, text: str
) -> Loss | None:
    """Runs the bundle in float32 and as built over the last part of ``text``; ``None`` where nothing here can.

    Where weights alone are small and the device is not here, another device of the runtime tells what they cost.

    Args:
        bundle: As it was before the build.
        name: Of the target.
        entry: What was built, in ``scratch / name``.
        scratch: A folder for a bundle of links.
        compiler: Whose environment has the runtime.
        text: No part of what ranges were taken from.
    """
    backend = measures(name, entry.precision)
    if backend is None:
        return None
    anywhere = EMULATORS[backend].anywhere
    if anywhere is not None and entry.device not in anywhere:
        if PRECISIONS[entry.precision].small_weights is None:
            return None
        entry = replace(entry, device=anywhere[0])
    try:
        return loss_by(EmulatorBackend(backend, python=compiler.python), bundle, entry, scratch, text)
    except InputError as error:
        if error.where != f"backend {backend}":
            raise
        logger.warning("what %s costs is not measured: %s", entry.precision, error)  # it is not installed
        return None


def loss_by(backend: EmulatorBackend, bundle: Bundle, entry: TargetEntry, scratch: Path, text: str) -> Loss:
    """Runs the bundle in float32, and by ``backend`` on the artifacts of ``entry`` in a folder below ``scratch``.

    Args:
        backend: Whose target names that folder.
        bundle: As it was before the build.
        entry: What was built.
        scratch: A folder for a bundle of links, too.
        text: Of which the last part is run.
    """
    plain = load(bundle.path, check="size")
    tokens = _last_tokens(plain, text)
    trial = _with_artifacts(bundle, backend.target, entry, scratch)
    built = load(trial, backend=backend, threads=1, check="size")
    given = {argument.value.name: tokens for argument in plain.program.inputs if argument.source == "argument"}
    predicted = predicted_tokens(plain.program, given)
    output = "hidden" if predicted is None else "logits"
    before, after = (_array(loaded, tokens, output) for loaded in (plain, built))
    if predicted is None:
        distance = float(np.linalg.norm(after - before) / np.linalg.norm(before))
        return Loss("hidden states", len(tokens), 0.0, distance)
    return Loss("perplexity", len(tokens), perplexity(before, predicted)[0], perplexity(after, predicted)[0])


def refuse_loss(loss: Loss | None, name: str, precision: str, *, allowed: bool) -> None:
    """Raises where more is lost than :data:`MOST`, or nothing tells how much, unless it is allowed."""
    if allowed:
        return
    if loss is None:
        raise _unmeasured(name, precision)
    if loss.share <= MOST:
        return
    told = f"{loss.before:.4g} becomes {loss.after:.4g}" if loss.before else "are off"
    problem = f"ruins the model in {precision}: {loss.measure} {told}, {loss.share:.0%} where {MOST:.0%} is the most"
    raise CompileError(f"target {name}", problem, "build in another precision, or take it as it is with --allow-loss")


def refuse_unmeasured(name: str, precision: str, *, allowed: bool) -> None:
    """Raises before anything is built where nothing here can tell what it costs, unless that is allowed."""
    if not allowed and PRECISIONS[precision].lossy and measures(name, precision) is None:
        raise _unmeasured(name, precision)


def _unmeasured(name: str, precision: str) -> CompileError:
    problem = f"nothing here runs what is built in {precision}, so that nothing tells what it costs the model"
    return CompileError(f"target {name}", problem, "build in another precision, or take it unmeasured by --allow-loss")


def _last_tokens(loaded: LoadedBundle, text: str) -> npt.NDArray[np.int64]:
    """Those of the text's last part, as far as the model takes them."""
    if loaded.tokenizer is None:
        raise InputError("--calibrate", f"{loaded.program.name} has no tokenizer to read a text with", "leave it out")
    most = min((limit.length for limit in loaded.program.limits), default=TOKENS)
    part = text[len(text) - len(text) // PARTS :]
    tokens = np.asarray(loaded.tokenizer.encode(part), np.int64)[: min(most, TOKENS)]
    if len(tokens) < 2 or len(input_axes(loaded.program)) != 1:
        raise InputError("--calibrate", f"a fifth of the text has {len(tokens)} tokens", "give a longer one")
    return tokens


def _with_artifacts(bundle: Bundle, name: str, entry: TargetEntry, scratch: Path) -> Path:
    """A bundle of links to the one that there is, with what was built."""
    trial = scratch / "trial"
    for file in bundle.manifest.files:
        link_file(bundle.file(file).resolve(), trial / file)
    write_json(trial / MANIFEST, to_json(bundle.manifest))
    write_target(read_bundle(trial, check="size"), name, entry, scratch)
    return trial


def _array(loaded: LoadedBundle, tokens: npt.NDArray[np.int64], output: str) -> npt.NDArray[Any]:
    return np.asarray(loaded.run(tokens, output=output).array)
