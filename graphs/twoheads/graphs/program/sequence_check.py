"""Whether a sequence stage makes sense: its operator, its attributes, and the shapes and dtypes that it maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twoheads.graphs.program.axes import add_axes
from twoheads.graphs.program.program import Dim, SequenceStage, Value
from twoheads.graphs.program.sequence_operators import DTYPES, OPERATORS, SequenceOperator

__all__ = ["sequence_problem"]

_COMPARES = ("equal", "not_equal", "greater", "less", "logical_and", "logical_or", "logical_not")


def sequence_problem(stage: SequenceStage, inputs: Sequence[Value]) -> str | None:
    """What is wrong with ``stage``, which reads ``inputs``; ``None`` if nothing is."""
    form = OPERATORS.get(stage.operator)
    if form is None:
        return f"{stage.operator!r} is not a sequence operator"
    fewest, most = form.inputs
    if not fewest <= len(inputs) <= most:
        return f"{stage.operator} of {len(inputs)} inputs"
    names = tuple(name for name, _ in stage.attributes)
    if names != form.attributes_for(len(inputs)):
        return f"{stage.operator} with attributes {list(names)}, expected {list(form.attributes_for(len(inputs)))}"
    return _axis_problem(stage, inputs) or _dtype_problem(stage, form, inputs) or _shape_problem(stage, inputs)


def _axis_problem(stage: SequenceStage, inputs: Sequence[Value]) -> str | None:
    """Whether ``axis`` is a dimension of every input, and the token axis of those that have one."""
    attributes = dict(stage.attributes)
    axis = attributes.get("axis")
    if axis is None:
        return None
    moved = inputs[:1] if stage.operator == "take_at" else inputs
    for value in moved:
        if not 0 <= axis < len(value.shape):
            return f"axis {axis} of {value.name!r}, which has {len(value.shape)} dimensions"
        if value.axis is not None and value.token_axis != axis:
            return f"axis {axis} of {value.name!r}, whose token axis is {value.token_axis}"
    if stage.operator == "take" and attributes["from_end"] not in (0, 1):
        return f"from_end={attributes['from_end']}"
    return None


def _dtype_problem(stage: SequenceStage, form: SequenceOperator, inputs: Sequence[Value]) -> str | None:
    kinds = [np.dtype(value.dtype).kind for value in inputs]
    made = stage.output.dtype
    if not form.moves and any(kind not in "iub" for kind in kinds):
        return f"{stage.operator} computes with whole numbers and truth values, not with {inputs[0].dtype}"
    if stage.operator == "take_at" and kinds[1] not in "iu":
        return f"take_at takes the row's number as a whole number, not as {inputs[1].dtype}"
    if stage.operator == "cast":
        to = dict(stage.attributes)["to"]
        return None if 0 <= to < len(DTYPES) and DTYPES[to] == made else f"cast to {to} makes no {made}"
    if stage.operator in _COMPARES:
        return None if made == "bool" else f"{stage.operator} makes bool, not {made}"
    if form.moves and any(value.dtype != made for value in inputs[: 1 if stage.operator == "take_at" else None]):
        return f"{stage.operator} of {inputs[0].dtype} makes no {made}"
    if not form.moves and np.dtype(made).kind not in "iub":
        return f"{stage.operator} makes no {made}"
    return None


def _shape_problem(stage: SequenceStage, inputs: Sequence[Value]) -> str | None:
    """Whether the output's shape is what the operator makes, up to dimensions of 1; a reshape is seen in the run."""
    made = _shape(stage, inputs)
    if isinstance(made, str):
        return made
    if made is not None and _long(made) != _long(stage.output.shape):
        return f"{stage.operator} makes {list(made)}, not {list(stage.output.shape)}"
    return None


def _shape(stage: SequenceStage, inputs: Sequence[Value]) -> tuple[Dim, ...] | str | None:
    """The shape that the operator makes; ``None`` if the output's decides, text if there is none."""
    shape = inputs[0].shape
    axis = dict(stage.attributes).get("axis", 0)
    before, after = shape[:axis], shape[axis + 1 :]
    match stage.operator:
        case "take":
            rows = stage.output.shape[axis] if len(stage.output.shape) == len(shape) else 1
            return (*before, rows, *after)
        case "take_at" | "sum" | "mean" | "max" | "min" | "argmax":
            return (*before, 1, *after)
        case "concat":
            if any((value.shape[:axis], value.shape[axis + 1 :]) != (before, after) for value in inputs):
                return f"concat of unlike shapes {[list(value.shape) for value in inputs]}"
            try:
                return (*before, add_axes(str(value.shape[axis]) for value in inputs), *after)
            except ValueError as error:
                return str(error)
        case "cast" | "cumsum" | "logical_not":
            return shape
        case "reshape" | "expand":
            return None
        case _:
            return _broadcast([value.shape for value in inputs])


def _broadcast(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...] | str:
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    dims: list[Dim] = []
    for column in zip(*padded, strict=True):
        long = {dim for dim in column if dim != 1}
        if len(long) > 1:
            return f"shapes {[list(shape) for shape in shapes]} do not broadcast"
        dims.append(long.pop() if long else 1)
    return tuple(dims)


def _long(shape: tuple[Dim, ...]) -> list[str]:
    """The dimensions that are not 1; a constant number of rows is the same as an axis and as a number."""
    return [str(dim) for dim in shape if dim != 1]
