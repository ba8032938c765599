"""What a compiler is told of values: of a run over a text, where it takes ranges from them, or else random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]

from twoheads.export.accelerators.rewrites.hidden_scores import raise_masks
from twoheads.export.accelerators.target import Target
from twoheads.export.engines.jobs import EngineJob, random_inputs
from twoheads.export.engines.recording import InputRecorder, recorded_lengths
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import value_rows
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["PARTS", "SAMPLES", "Calibration", "EngineInputs", "calibrate_by", "inputs_of", "run_on_host"]

PARTS = 5
"""Into as many parts a text is cut: runs over all but the last one calibrate, and one over the last one checks."""

SAMPLES = 16
"""Calls whose inputs calibrate an engine with its weights, drawn from all calls of all runs."""

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What runs over a text gave to the engines, by the name of an ``EngineJob``.

    Attributes:
        samples: For ranges: inputs of at most :data:`SAMPLES` calls.
        check: Inputs of one call of another run, over another part of the text.
    """

    samples: Mapping[str, Sequence[Arrays]]
    check: Mapping[str, Sequence[Arrays]]


@dataclass(frozen=True, slots=True)
class EngineInputs:
    """What one engine is fed with.

    Attributes:
        given: The inputs of the whole engine that is compared with.
        check: The same as the part on the accelerator takes them, for what was built.
        samples: For ranges, as that part takes them; none where random numbers check.
    """

    given: Arrays
    check: Arrays
    samples: tuple[Arrays, ...]

    def digest(self) -> bytes:
        """Names the samples and what checks them; empty where there are none."""
        digest = hashlib.sha256()
        for arrays in (self.check, *self.samples) if self.samples else ():
            for name, array in sorted(arrays.items()):
                digest.update(f"{name} {array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest() if self.samples else b""


def calibrate_by(bundle: Bundle, text: str) -> Calibration:
    """Runs ``bundle`` in float32 over parts of ``text``, each read from its own beginning, and records its engines.

    A run is two key tiles and half a block long, or as long as the model takes.

    Raises:
        InputError: The text is too short, or no text is all that the model reads.
    """
    program = bundle.program
    arguments = [entry.value for entry in program.inputs if entry.source == "argument"]
    recorder = InputRecorder(bundle, SAMPLES, draw=True, narrow=True)
    tokenizer = recorder.loaded.tokenizer
    if len(arguments) != 1 or np.dtype(arguments[0].dtype).kind == "f" or tokenizer is None:
        raise InputError("--calibrate", f"{program.name} does not run on a text alone", "build it in another precision")
    wanted = value_rows(arguments[0], recorded_lengths(program))
    size = -(-len(text) // PARTS)
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    shortest = min((len(tokenizer.encode(part)) for part in parts), default=0) if len(parts) == PARTS else 0
    if shortest < wanted:
        raise InputError(
            "--calibrate",
            f"the text is too short: {PARTS} runs of {wanted} tokens are needed, and a part of it has {shortest}",
            f"give a text at least {-(-wanted // max(shortest, 1))} times as long",
        )
    for part in parts[:-1]:
        recorder.run(text=part)
    samples = recorder.take()
    recorder.run(text=parts[-1])
    return Calibration(samples, recorder.take())


def inputs_of(
    calibration: Calibration | None, job: EngineJob, host: onnx.ModelProto | None, target: Target
) -> EngineInputs:
    """What the engine of ``job`` is fed with.

    Args:
        calibration: If there is one; random values if not.
        job: Names the engine and its ports.
        host: The part of it that the host computes, with its weights, if any.
        target: Says what the scores of hidden keys become where values are whole numbers.

    Raises:
        InputError: The runs do not call the engine.
    """
    if calibration is None:
        given = random_inputs(job)
        return EngineInputs(given, _taken(host, [given])[0], ())
    samples, checks = (_calls(recorded, job) for recorded in (calibration.samples, calibration.check))
    if not samples or not checks:
        raise InputError(
            "--calibrate",
            f"no run over the text calls {job.name}",
            f"compile with --for {target.name}, or give no int8",
        )
    check = checks[len(checks) // 2]  # neither the first block, nor the last one with its padding
    taken = _taken(host, [*samples, check])
    if target.hidden_score is not None:
        taken = [raise_masks(arrays, target.hidden_score) for arrays in taken]
    return EngineInputs(check, taken[-1], tuple(taken[:-1]))


def _calls(recorded: Mapping[str, Sequence[Arrays]], job: EngineJob) -> Sequence[Arrays]:
    """Calls of the engine, or of a variant that takes all that it takes: one that merges, for the one that does not."""
    ports = {port.name for port in job.inputs}
    engine = job.name.rpartition(".")[0]
    names = (job.name, *(name for name in recorded if not job.weights and name.rpartition(".")[0] == engine))
    return next((calls for name in names if (calls := recorded.get(name, ())) and ports <= calls[0].keys()), ())


def _taken(host: onnx.ModelProto | None, given: Sequence[Arrays]) -> list[Arrays]:
    """What an accelerator's part can take: the engine's inputs, and what the host's part makes of them."""
    if host is None:
        return list(given)
    return [{**arrays, **made} for arrays, made in zip(given, run_on_host(host, given), strict=True)]


def run_on_host(model: onnx.ModelProto, given: Sequence[Arrays]) -> list[dict[str, npt.NDArray[Any]]]:
    """Every output of ``model``, by ONNX Runtime, from those of the values ``given`` that it takes; call by call."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, outputs = ([port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs()))
    found: list[dict[str, Any]] = []
    for arrays in given:
        values: Sequence[Any] = session.run(None, {name: arrays[name] for name in inputs})
        found.append(dict(zip(outputs, values, strict=True)))
    return found
