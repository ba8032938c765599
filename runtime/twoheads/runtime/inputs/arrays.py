"""Check what the caller gives, and turn it into the program's input values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.axes import axis_inputs, axis_length
from twoheads.graphs.program.lengths import input_axes, value_rows
from twoheads.graphs.program.program import COUNTING, Input, Program
from twoheads.runtime.memory.finite_rows import first_odd_row

__all__ = [
    "check_output",
    "complete_arrays",
    "given_arrays",
    "named_arrays",
    "resolve_positions",
    "shaped_arrays",
    "split_batch",
    "split_inputs",
]

LARGEST_POSITION = 1 << 31
"""Where no table ends sooner; float32 tells positions this far apart only by the hundred."""


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


def named_arrays(program: Program, given: Any) -> dict[str, npt.NDArray[Any]]:
    """What is given, as arrays by the names of the program's inputs.

    Raises:
        InputError: Missing or unknown names, or no arrays.
    """
    arguments = [entry.value.name for entry in program.inputs if entry.source == "argument"]
    known = [entry.value.name for entry in program.inputs]
    if not isinstance(given, Mapping):
        if len(arguments) != 1:
            raise InputError(
                "input", f"{program.name} takes {len(arguments)} arrays", f"give a mapping with {', '.join(arguments)}"
            )
        given = {arguments[0]: given}
    named: dict[str, Any] = {str(name): array for name, array in given.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in named:
        if name not in known:
            raise InputError(f"input {name}", f"{program.name} has no such input", f"give {', '.join(known)}")
    for name in arguments:
        if name not in named:
            raise InputError(f"input {name}", "is missing", f"give {', '.join(arguments)}")
    if not named:
        raise InputError("input", "is empty", f"give {', '.join(known)}")
    return {name: _as_array(f"input {name}", array) for name, array in named.items()}


def split_batch(program: Program, named: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, npt.NDArray[Any]]] | None:
    """The inputs of a batch: arrays ``[B, ...]``, ``B > 1``, for values ``[1, ...]``; ``None`` if it is one input.

    Arrays without the batch dimension belong to every input.

    Raises:
        InputError: Batches of different sizes.
    """
    shapes = {entry.value.name: entry.value.shape for entry in program.inputs}
    batched = {
        name: len(array)
        for name, array in named.items()
        if array.ndim == len(shapes[name]) and shapes[name][0] == 1 and len(array) > 1
    }
    if not batched:
        return None
    size = next(iter(batched.values()))
    for name, other in batched.items():
        if other != size:
            first = next(iter(batched))
            raise InputError(f"input {name}", f"has {other} rows, {first} has {size}", "give arrays of one batch")
    return [
        {name: array[at : at + 1] if name in batched else array for name, array in named.items()} for at in range(size)
    ]


def given_arrays(program: Program, given: Any) -> tuple[dict[str, int], dict[str, npt.NDArray[Any]]]:
    """The length of every input axis, and each array that is given, shaped as the value with those lengths.

    Args:
        program: Its ``argument`` inputs must be given; what the run generates (positions, zeros, lengths) may be.
        given: An array for the only argument, or a mapping from names to arrays; ``[N]``, ``[1, N]``, or features
            ``[N, width]``, ``[1, N, width]``; without the batch of 1, too, where an input has a fixed size.

    Raises:
        InputError: Missing, unknown, empty, of the wrong kind or rank, out of range, or of differing lengths.
    """
    return shaped_arrays(program, named_arrays(program, given))


def shaped_arrays(
    program: Program, named: Mapping[str, npt.NDArray[Any]]
) -> tuple[dict[str, int], dict[str, npt.NDArray[Any]]]:
    """As :func:`given_arrays`, of what :func:`named_arrays` gives."""
    entries = {entry.value.name: entry for entry in program.inputs}
    arrays = {name: _shaped(entries[name], named[name]) for name in entries if name in named}
    lengths = _lengths(program, arrays)
    for name in arrays:
        _check_generated(program, entries[name], arrays[name], lengths)
    return lengths, arrays


def complete_arrays(
    program: Program,
    lengths: Mapping[str, int],
    arrays: Mapping[str, npt.NDArray[Any]],
    sources: Sequence[str] = (*COUNTING, "zeros", "length"),
) -> dict[str, npt.NDArray[Any]]:
    """``arrays`` and, for ``lengths``, those of the inputs with one of ``sources`` that were not given."""
    generated = (entry for entry in program.inputs if entry.source in sources and entry.value.name not in arrays)
    return {**arrays, **{entry.value.name: _generated(entry, lengths) for entry in generated}}


def _lengths(program: Program, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """The length of every input axis, from the first array on it; the other arrays must agree."""
    first: dict[str, str] = {}
    lengths: dict[str, int] = {}
    given = {entry.value.name: entry.value for entry in program.inputs if entry.value.name in arrays}
    names = input_axes(program)
    for name, value in given.items():
        if value.axis in names and value.axis not in first:
            first[value.axis] = name
            lengths[value.axis] = arrays[name].shape[value.token_axis]
    if missing := [axis for axis in names if axis not in lengths]:
        on = [entry.value.name for entry in program.inputs if entry.value.axis == missing[0]]
        raise InputError("input", f"nothing tells the length of {missing[0]}", f"give {' or '.join(on)}")
    for name, value in given.items():
        if value.axis is None:
            continue
        found, expected = arrays[name].shape[value.token_axis], axis_length(value.axis, lengths)
        if found != expected:
            other = next((first[axis] for axis in axis_inputs(value.axis)), "")
            told = f"{other} has {lengths[value.axis]}" if value.axis in first else f"expected {expected}"
            raise InputError(f"input {name}", f"has {found} tokens, {told}", "give arrays of one length")
    return lengths


def check_output(program: Program, output: str | None, *, positions: bool, sink: bool) -> str:
    """The output to compute, ``None`` meaning the program's default.

    Raises:
        InputError: The program does not give it, or positions or a sink make no sense with it.
    """
    known = program.outputs
    output = output or program.default_output
    if output not in known:
        raise InputError("output", f"{program.name} does not give {output!r}", f"ask for one of: {', '.join(known)}")
    pooled = output == "embedding" or (output == "logits" and program.pooled_logits)
    if positions and (pooled or output == "last"):
        ask = "hidden" if program.logits is None or program.pooled_logits else "logits or hidden"
        raise InputError("positions", f"can't be chosen for {output!r}", f"ask for {ask}")
    if sink and pooled:
        what = "an embedding is" if output == "embedding" else f"the logits of {program.name} are"
        raise InputError("sink", f"{what} one vector, not rows", "run without a sink")
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


def _as_array(name: str, given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(name, f"is not an array ({error})", "give numbers of one length") from None


def _shaped(entry: Input, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in the value's dtype and shape."""
    value = entry.value
    name = f"input {value.name}"
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
    with np.errstate(over="ignore"):
        typed = shaped.astype(value.dtype, copy=False)
    if typed.dtype.kind == "f":
        _check_finite(name, typed, None if value.axis is None else value.token_axis)
    return typed


def _check_kind(name: str, array: npt.NDArray[Any], wanted: np.dtype[Any]) -> None:
    allowed = {"i": "iu", "u": "iu", "f": "fiu", "b": "b"}[wanted.kind]
    if array.dtype.kind not in allowed:
        what = "integers" if wanted.kind in "iu" else "numbers"
        raise InputError(name, f"holds {array.dtype}, expected {what} ({wanted})", f"give an array of {wanted}")
    if wanted.kind in "iu":
        info = np.iinfo(wanted)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise InputError(name, f"holds values that do not fit {wanted}", f"give {info.min} to {info.max}")


def _check_finite(name: str, array: npt.NDArray[Any], axis: int | None) -> None:
    odd = first_odd_row(array, axis or 0)
    if odd is not None:
        where = "" if axis is None else f", first at token {odd}"
        raise InputError(name, f"holds NaN or infinity{where}", "give finite numbers")


def _check_limit(name: str, flat: npt.NDArray[Any], limit: int) -> None:
    if int(flat.min()) >= 0 and int(flat.max()) < limit:
        return
    at = int(np.argmax((flat < 0) | (flat >= limit)))
    raise InputError(
        name,
        f"position {at} has the value {int(flat[at])}, and the model knows 0 to {limit - 1}",
        "use the model's own tokenizer",
    )


def _check_generated(program: Program, entry: Input, array: npt.NDArray[Any], lengths: Mapping[str, int]) -> None:
    """Checks what a run makes itself, and the caller gives instead: positions within the model's tables, the length."""
    name = f"input {entry.value.name}"
    if entry.source in COUNTING:
        ends = [limit.length for limit in program.limits if limit.axis == entry.value.axis]
        end = min(ends, default=LARGEST_POSITION)
        flat = array.reshape(-1)
        if int(flat.min()) < 0 or int(flat.max()) >= end:
            at = int(np.argmax((flat < 0) | (flat >= end)))
            problem = f"token {at} has the position {int(flat[at])}, and the model's end before {end}"
            raise InputError(name, problem, f"give positions from 0 to {end - 1}")
    elif entry.source == "length" and entry.axis is not None:
        length = axis_length(entry.axis, lengths)
        if not (array == length).all():
            raise InputError(name, f"is {array.reshape(-1)[0]}, and {entry.axis} has {length} tokens", "leave it out")


def _generated(entry: Input, lengths: Mapping[str, int]) -> npt.NDArray[Any]:
    value = entry.value
    if entry.source == "length" and entry.axis is not None:
        return np.full(value.block_shape(1), axis_length(entry.axis, lengths), value.dtype)
    rows = value_rows(value, lengths)
    if entry.source == "zeros":
        return np.zeros(value.block_shape(rows), value.dtype)
    shape = [1] * len(value.shape)
    shape[value.token_axis] = rows
    positions = np.arange(rows, dtype=value.dtype).reshape(shape)
    return np.broadcast_to(positions, value.block_shape(rows))
