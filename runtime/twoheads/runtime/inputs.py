"""Check what the caller gives, and turn it into the program's input values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.bundle_format import Manifest
from twoheads.graphs.errors import InputError
from twoheads.graphs.program import AttentionStage, Input, Program, Value

__all__ = [
    "approximation_warning",
    "check_output",
    "input_arrays",
    "resolve_positions",
    "samples_attention",
    "split_inputs",
    "trained_length_warning",
]


def split_inputs(tokens: Any) -> tuple[list[Any], bool]:
    """The inputs in ``tokens``, and whether there were several.

    A list or tuple whose first entry is not a number is a list of inputs; anything else is one input.

    Raises:
        InputError: An empty list.
    """
    if isinstance(tokens, list | tuple):
        items: list[Any] = list(tokens)  # pyright: ignore[reportUnknownArgumentType]
        if not items:
            raise InputError("input", "is empty", "give 1 token or more")
        if isinstance(items[0], list | tuple | Mapping) or getattr(items[0], "ndim", 0) > 0:
            return items, True
    return [tokens], False


def input_arrays(program: Program, given: Any) -> tuple[int, dict[str, npt.NDArray[Any]]]:
    """The length of an input and an array for every input value, shaped as the value with ``length`` tokens.

    Args:
        program: Its ``argument`` inputs must be given; ``positions`` and ``zeros`` may be.
        given: An array for the only argument, or a mapping from names to arrays; ``[N]``, ``[1, N]``, or features
            ``[N, width]``, ``[1, N, width]``.

    Raises:
        InputError: Missing, unknown, empty, of the wrong kind or rank, out of range, or of differing lengths.
    """
    named = _named(program, given)
    arrays = {
        entry.value.name: _array(entry, named[entry.value.name])
        for entry in program.inputs
        if entry.value.name in named
    }
    lengths = {name: array.shape[_value(program, name).token_axis] for name, array in arrays.items()}
    length = next(iter(lengths.values()))
    for name, other in lengths.items():
        if other != length:
            first = next(iter(lengths))
            raise InputError(f"input {name}", f"has {other} tokens, {first} has {length}", "give arrays of one length")
    for entry in program.inputs:
        if entry.value.name not in arrays:
            arrays[entry.value.name] = _generated(entry, length)
    return length, arrays


def check_output(program: Program, output: str | None, *, positions: bool, sink: bool) -> str:
    """The output to compute, ``None`` meaning the program's default.

    Raises:
        InputError: The program does not give it, or positions or a sink make no sense with it.
    """
    known = ["hidden"]
    if program.logits:
        known += ["logits", "last"]
    if program.pooling:
        known.append("embedding")
    output = output or program.default_output
    if output not in known:
        raise InputError("output", f"{program.name} does not give {output!r}", f"ask for one of: {', '.join(known)}")
    if positions and output not in ("logits", "hidden"):
        raise InputError("positions", f"can't be chosen for {output!r}", "ask for logits or hidden")
    if sink and output == "embedding":
        raise InputError("sink", "an embedding is one vector, not rows", "run without a sink")
    return output


def resolve_positions(positions: Sequence[int] | npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
    """Positions as int64 ``[count]`` in ``[0, length)``; negative ones count from the end.

    Raises:
        InputError: None, not whole numbers, or out of range.
    """
    array = _as_array("positions", positions)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InputError("positions", f"are {array.dtype}{list(array.shape)}", "give a list of one or more integers")
    wrong = (array < -length) | (array >= length) if array.dtype.kind == "i" else array >= length
    if wrong.any():
        at = int(array[np.argmax(wrong)])
        raise InputError("positions", f"{at} is outside of an input of {length} tokens", f"give 0 to {length - 1}")
    whole = array.astype(np.int64)
    return np.where(whole < 0, whole + length, whole)


def approximation_warning(manifest: Manifest) -> str | None:
    """What to tell the user about a bundle that is not exact."""
    if not manifest.approximations:
        return None
    return (
        f"approximate: compiled with --attention {', '.join(manifest.approximations)}; what the model would have seen "
        "beyond that is missing or estimated"
    )


def samples_attention(program: Program) -> bool:
    """Whether some attention of the program samples its keys."""
    return any(isinstance(stage, AttentionStage) and stage.average is not None for stage in program.body)


def trained_length_warning(program: Program, length: int) -> str | None:
    """What to tell the user about an input longer than the model was trained on."""
    trained = program.trained_length
    if trained is None or length <= trained:
        return None
    return (
        f"{length} tokens exceed the {trained} that {program.name} was trained on; the result is exact, but the "
        "model's own quality may suffer"
    )


def _named(program: Program, given: Any) -> dict[str, Any]:
    arguments = [entry.value.name for entry in program.inputs if entry.source == "argument"]
    known = [entry.value.name for entry in program.inputs]
    if not isinstance(given, Mapping):
        if len(arguments) != 1:
            raise InputError(
                "input", f"{program.name} takes {len(arguments)} arrays", f"give a mapping with {', '.join(arguments)}"
            )
        return {arguments[0]: given}
    named: dict[str, Any] = {str(name): array for name, array in given.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in named:
        if name not in known:
            raise InputError(f"input {name}", f"{program.name} has no such input", f"give {', '.join(known)}")
    for name in arguments:
        if name not in named:
            raise InputError(f"input {name}", "is missing", f"give {', '.join(arguments)}")
    if not named:
        raise InputError("input", "is empty", f"give {', '.join(known)}")
    return named


def _as_array(name: str, given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(name, f"is not an array ({error})", "give numbers of one length") from None


def _array(entry: Input, given: Any) -> npt.NDArray[Any]:
    """``given`` as an array of the value's dtype and shape."""
    value = entry.value
    name = f"input {value.name}"
    array = _as_array(name, given)
    if array.size == 0:
        raise InputError(name, "is empty (0 tokens)", "give 1 token or more")
    _check_kind(name, array, np.dtype(value.dtype))
    shaped = array[None] if array.ndim == len(value.shape) - 1 and value.shape[0] == 1 else array
    fits = shaped.ndim == len(value.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(value.shape, shaped.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, value.shape))
        raise InputError(
            name,
            f"has shape {list(array.shape)}, expected [{wanted}]"
            + (" (the batch of 1 may be left out)" if value.shape[0] == 1 else ""),
            "give one sequence, or a list of sequences for several",
        )
    if entry.limit is not None:
        _check_limit(name, shaped.reshape(-1), entry.limit)
    return shaped.astype(value.dtype, copy=False)


def _check_kind(name: str, array: npt.NDArray[Any], wanted: np.dtype[Any]) -> None:
    allowed = {"i": "iu", "u": "iu", "f": "fiu", "b": "b"}[wanted.kind]
    if array.dtype.kind not in allowed:
        what = "integers" if wanted.kind in "iu" else "numbers"
        raise InputError(name, f"holds {array.dtype}, expected {what} ({wanted})", f"give an array of {wanted}")
    if wanted.kind in "iu":
        info = np.iinfo(wanted)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise InputError(name, f"holds values that do not fit {wanted}", f"give {info.min} to {info.max}")


def _check_limit(name: str, flat: npt.NDArray[Any], limit: int) -> None:
    if int(flat.min()) >= 0 and int(flat.max()) < limit:
        return
    at = int(np.argmax((flat < 0) | (flat >= limit)))
    raise InputError(
        name,
        f"position {at} has the value {int(flat[at])}, and the model knows 0 to {limit - 1}",
        "use the model's own tokenizer",
    )


def _generated(entry: Input, length: int) -> npt.NDArray[Any]:
    value = entry.value
    if entry.source == "zeros":
        return np.zeros(value.block_shape(length), value.dtype)
    shape = [1] * len(value.shape)
    shape[value.token_axis] = length
    positions = np.arange(length, dtype=value.dtype).reshape(shape)
    return np.broadcast_to(positions, value.block_shape(length))


def _value(program: Program, name: str) -> Value:
    return next(entry.value for entry in program.inputs if entry.value.name == name)
