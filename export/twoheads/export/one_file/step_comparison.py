"""The written file for steps beside the runtime: one sequence in parts, every output and its successor compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.one_file.comparison import LengthCheck, judge, open_file, random_arguments, run_error
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Program
from twoheads.runtime import load
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["check_step_file", "empty_past", "following_past"]

Array = npt.NDArray[Any]

STEP_ROWS = 3
"""New tokens of the last part: several, behind a block's edge."""


def check_step_file(file: Path, bundle: Path, outputs: tuple[str, ...], told: str) -> tuple[LengthCheck, ...]:
    """Runs one token alone, and a sequence in parts: over the edge of a block, one token, and a few more.

    Args:
        file: The file, its weights beside it.
        bundle: What it was made of.
        outputs: What it gives beside what it keeps.
        told: What an error calls the file.

    Raises:
        BundleError: They differ by more than a file may, or the file can't be run.
    """
    loaded = load(bundle, check="size")
    total = _total(loaded.program)
    arguments = random_arguments(loaded.program, total)
    tokens = next(array for array in arguments.values())
    expected = {output: _whole(loaded, tokens, output) for output in outputs}
    checks: list[LengthCheck] = []
    try:
        session = open_file(file)
        for parts in _sequences(total):
            past, at = empty_past(session), 0
            for part in parts:
                found, past = _step(session, tokens[:, at : at + part], past)
                at += part
                checks.append(LengthCheck(at, _errors(found, expected, at - part, at)))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise run_error(told, error) from error
    judge(checks, told)
    return tuple(checks)


def _total(program: Program) -> int:
    """Tokens of the sequence: a block, and a few more, as far as the model takes them."""
    longest = min((limit.length for limit in program.limits), default=program.block_size + 1 + STEP_ROWS + 1)
    return min(longest, program.block_size + 1 + 1 + STEP_ROWS)


def _sequences(total: int) -> tuple[tuple[int, ...], ...]:
    """The parts of each sequence that is tried."""
    prompt = max(1, total - 1 - STEP_ROWS)
    parts = [part for part in (prompt, 1, total - prompt - 1) if part > 0]
    return ((1,), tuple(parts))


def empty_past(session: Any) -> dict[str, Array]:
    """What a file for steps is given before the first token: no keys and values, states of zeros."""
    return {
        port.name: np.zeros([0 if isinstance(dim, str) else dim for dim in port.shape], np.float32)
        for port in session.get_inputs()[1:]
    }


def following_past(kept: Mapping[str, Array]) -> dict[str, Array]:
    """What is given next, of what was kept."""
    return {
        name.replace("present_states", "past_states").replace("present.", "past_key_values."): array
        for name, array in kept.items()
    }


def _step(session: Any, tokens: Array, past: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """A run's outputs by name, and what the next one is given."""
    name = session.get_inputs()[0].name
    names = [port.name for port in session.get_outputs()]
    found = dict(zip(names, session.run(names, {name: tokens, **past}), strict=True))
    kept = {name: array for name, array in found.items() if name.startswith("present")}
    return found, following_past(kept)


def _whole(loaded: LoadedBundle, tokens: Array, output: str) -> Array:
    """The runtime's rows of the whole sequence, ``[tokens, width]``; for the last token's logits those of all."""
    array = loaded.run(tokens, output="hidden" if output == "hidden" else "logits").array
    if array is None:
        raise InternalError(f"a run of {loaded.path} gave no {output}")
    return np.asarray(array).reshape(tokens.shape[1], -1)


def _errors(found: Mapping[str, Array], expected: Mapping[str, Array], first: int, end: int) -> dict[str, float]:
    errors: dict[str, float] = {}
    for output, rows in expected.items():
        wanted = rows[end - 1 : end] if output == "last" else rows[first:end]
        errors[output] = relative_error(found[output].reshape(wanted.shape), wanted)
    return errors
