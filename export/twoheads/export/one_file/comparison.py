"""The written file beside the runtime: the same inputs through both, every output compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from twoheads.export.engines.tensor_error import relative_error
from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.lengths import input_axes, value_rows
from twoheads.graphs.program.program import Program, SequenceStage
from twoheads.graphs.program.sequence_operators import sought_tokens
from twoheads.runtime import load
from twoheads.runtime.runs.session import LoadedBundle

__all__ = [
    "TOLERANCE",
    "LengthCheck",
    "check_file",
    "check_lengths",
    "judge",
    "open_file",
    "random_arguments",
    "run_error",
]

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
"""The largest error that passes, as a share of an output's largest magnitude: both are float32 and add up tiles."""

REPORT = "this is a bug of twoheads; please report it"

SHORTEST_TRIED = 64
"""A model that can't take so few tokens (a convolution over more of them) is checked at two blocks alone."""


@dataclass(frozen=True, slots=True)
class LengthCheck:
    """The file beside the runtime at one length.

    Attributes:
        length: Tokens along every axis of the input.
        errors: Of each output, the largest distance as a share of the largest magnitude.
    """

    length: int
    errors: Mapping[str, float]


def check_file(file: Path, bundle: Path, outputs: tuple[str, ...], told: str) -> tuple[LengthCheck, ...]:
    """Runs the file and the runtime at a short length and over the edge of a block.

    Args:
        file: The file, its weights beside it.
        bundle: What it was made of.
        outputs: What it gives.
        told: What an error calls the file.

    Raises:
        BundleError: They differ by more than :data:`TOLERANCE`, or the file can't be run.
    """
    loaded = load(bundle, check="size")
    lengths = check_lengths(loaded.program)
    arrays = {length: random_arguments(loaded.program, length) for length in lengths}
    try:
        session = open_file(file)
        found = {length: session.run(list(outputs), arrays[length]) for length in lengths}
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise run_error(told, error) from error
    checks = tuple(LengthCheck(length, _errors(loaded, outputs, arrays[length], found[length])) for length in lengths)
    judge(checks, told)
    return checks


def run_error(told: str, error: Exception) -> BundleError:
    """What ONNX Runtime's ``error`` means for the file that is called ``told``."""
    return BundleError(told, f"can't be run by ONNX Runtime: {' '.join(str(error).split())[-400:]}", REPORT)


def judge(checks: Sequence[LengthCheck], told: str) -> None:
    """Refuses a file that is too far from the runtime.

    Raises:
        BundleError: Names the output, the length and the distance.
    """
    for check in checks:
        for output, distance in check.errors.items():
            if not distance <= TOLERANCE:
                problem = (
                    f"gives {output} of {check.length} tokens that are off by {distance:.1e}, more than {TOLERANCE}"
                )
                raise BundleError(told, problem, REPORT)


def open_file(file: Path) -> Any:
    """A session of the file on the processor."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # a refusal is an exception here, and told by who catches it
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def check_lengths(program: Program) -> tuple[int, ...]:
    """The shortest length that the model takes, and one token more than a block, as far as it takes that."""
    longest = min((limit.length for limit in program.limits), default=program.block_size + 1)
    shortest = next((length for length in range(1, SHORTEST_TRIED) if _takes(program, length)), longest)
    return tuple(dict.fromkeys((shortest, max(shortest, min(longest, program.block_size + 1)))))


def _takes(program: Program, length: int) -> bool:
    lengths = dict.fromkeys(input_axes(program), length)
    try:
        for value in program.values():
            if value.axis is not None:
                axis_length(value.axis, lengths)
    except InputError:
        return False
    return True


def random_arguments(program: Program, length: int, seed: int = 0) -> dict[str, Array]:
    """Arrays for the file's inputs: tokens within the vocabulary, or normal numbers."""
    random = np.random.default_rng(seed)
    lengths = dict.fromkeys(input_axes(program), length)
    arrays: dict[str, Array] = {}
    for entry in program.inputs:
        if entry.source != "argument":
            continue
        shape = entry.value.block_shape(value_rows(entry.value, lengths))
        if np.dtype(entry.value.dtype).kind == "f":
            arrays[entry.value.name] = random.standard_normal(shape).astype(entry.value.dtype)
        else:
            arrays[entry.value.name] = random.integers(0, entry.limit or 2, shape).astype(entry.value.dtype)
    for name, token in sought_tokens(stage for stage in program.body if isinstance(stage, SequenceStage)).items():
        if name in arrays:
            arrays[name][..., -1] = token
    return arrays


def _errors(
    loaded: LoadedBundle, outputs: tuple[str, ...], arrays: Mapping[str, Array], found: Sequence[Array]
) -> dict[str, float]:
    errors: dict[str, float] = {}
    for output, result in zip(outputs, found, strict=True):
        expected = loaded.run(arrays, output=output).array
        if expected is None:
            raise InternalError(f"a run of {loaded.path} gave no {output}")
        errors[output] = relative_error(result, expected)
    return errors
