"""Which lengths a program's inputs have, and how many rows its values then have."""

from __future__ import annotations

from collections.abc import Mapping

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.axes import axis_inputs, axis_length
from twoheads.graphs.program.program import TOKENS, Program, Stage, Value

__all__ = ["check_limit", "input_axes", "is_cross", "main_length", "resolve_lengths", "value_rows"]


def input_axes(program: Program) -> tuple[str, ...]:
    """The axes whose lengths an input decides, ``n`` first; none where every input has a fixed size."""
    axes = [entry.value.axis for entry in program.inputs] + [entry.axis for entry in program.inputs]
    names = dict.fromkeys(name for axis in axes if axis is not None for name in axis_inputs(axis))
    return tuple(sorted(names, key=lambda name: name != TOKENS))


def resolve_lengths(program: Program, length: int | Mapping[str, int]) -> dict[str, int]:
    """The length of every input axis.

    Args:
        program: Whose inputs.
        length: The lengths by axis; or one number where there is one axis, or where the inputs have a fixed size.

    Raises:
        InputError: A length is missing, unknown, or not positive.
    """
    axes = input_axes(program)
    if isinstance(length, Mapping):
        lengths = dict(length)
    elif len(axes) == 1:
        lengths = {axes[0]: length}
    elif axes:
        raise InputError("length", f"{program.name} reads inputs of several lengths", f"give {_example(axes)}")
    else:
        lengths = {}
        fixed = main_length(program, lengths)
        if length != fixed:
            raise InputError("length", f"is {length}, and {program.name} takes {fixed} only", f"give {fixed}")
    if lengths.keys() != set(axes):
        problem = f"is given for {', '.join(lengths)}" if lengths else "is not given"
        raise InputError("length", problem, f"give {_example(axes)}")
    for axis, number in lengths.items():
        if number < 1:
            raise InputError("length" if len(axes) == 1 else f"length of {axis}", f"is {number}", "give 1 or more")
    return {axis: lengths[axis] for axis in axes}


def _example(axes: tuple[str, ...]) -> str:
    if len(axes) == 1:
        return "how many tokens: --length N"
    return ", ".join(f"{axis}=..." for axis in axes) or "none: the input has a fixed size"


def check_limit(program: Program, lengths: Mapping[str, int]) -> None:
    """Refuses lengths that the model itself can't take.

    Raises:
        InputError: A length is beyond one of the program's limits.
    """
    for limit in program.limits:
        length = lengths.get(limit.axis, 0)
        if length > limit.length:
            raise InputError(
                "length" if len(lengths) == 1 else f"length of {limit.axis}",
                f"{length} tokens exceed what the model {program.name} itself can take: {limit.reason} ends at "
                f"{limit.length} (the engines would run any length)",
                f"give {limit.length} tokens or fewer",
            )


def main_length(program: Program, lengths: Mapping[str, int]) -> int:
    """The length that reports tell: of the axis ``n``, else of the first axis, else the rows of the hidden states."""
    axes = input_axes(program)
    return lengths[axes[0]] if axes else value_rows(program.value(program.hidden), lengths)


def value_rows(value: Value, lengths: Mapping[str, int]) -> int:
    """Rows of ``value`` along its axis; 1 for a row value."""
    return 1 if value.axis is None else axis_length(value.axis, lengths)


def is_cross(stage: Stage, values: Mapping[str, Value]) -> bool:
    """Whether an attention's keys are on another axis than its queries."""
    queries, keys = stage.axes(values)
    return keys is not None and queries != keys
