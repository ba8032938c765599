"""The operators of sequence stages: the few ways, beside attention, in which a program moves rows.

They are computed on the host on whole values and take no engine call. ``take`` to ``min`` work on any dtype; ``axis``
is the dimension that they work along, which is the token axis where the input has one. The others do the arithmetic
of positions and padding that mixes tokens (RoBERTa's ``cumsum(ids != pad)``): whole numbers and truth values only.

=============================  ==========================  ==========================================================
operator                       attributes                  output
=============================  ==========================  ==========================================================
``take(x)``                    axis from_end start step    row ``t`` is row ``start + step*t`` of ``x``, 0 outside of
                                                           it; with ``from_end=1`` ``start`` counts from its end
``take_at(x, index)``          axis                        row ``index`` (an int64 row value of one entry) of ``x``;
                                                           negative ones count from the end
``concat(x, ...)``             axis                        the rows of all parts
``sum mean max min (x)``       axis                        over all rows; floats are summed in float64
``cumsum(x)``                  axis                        running sum
``argmax(x)``                  axis                        index of the first largest row
``add sub mul``                ``value`` if one input      of two inputs, or of one and ``value``; broadcast
``equal not_equal greater``    ``value`` if one input      likewise, a truth value
``less``
``logical_and logical_or``                                 of two truth values
``logical_not where``                                      as NumPy's
``cast(x)``                    to                          of dtype ``DTYPES[to]``
``reshape(x) expand(x)``                                   as the output's shape says
=============================  ==========================  ==========================================================

Every result may differ from the output's shape in dimensions of 1: a taken row may keep its dimension or drop it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "OPERATORS", "SequenceOperator", "compute_sequence", "number_of_rows", "sought_tokens"]

Array = npt.NDArray[Any]

DTYPES = ("bool", "int32", "int64", "float32", "float16")
"""What ``cast``'s attribute ``to`` counts."""

MANY = 1 << 16
"""The most parts of a ``concat``: no limit in practice."""


@dataclass(frozen=True, slots=True)
class SequenceOperator:
    """The form of an operator.

    Attributes:
        inputs: The fewest and the most inputs.
        attributes: Names of its attributes, in alphabetical order.
        moves: Whether it moves rows of any dtype; else it computes with whole numbers and truth values.
        scalar: Whether an attribute ``value`` takes the place of a missing second input.
    """

    inputs: tuple[int, int]
    attributes: tuple[str, ...] = ()
    moves: bool = False
    scalar: bool = False

    def attributes_for(self, inputs: int) -> tuple[str, ...]:
        """The attributes of a stage with so many inputs."""
        return ("value",) if self.scalar and inputs == 1 else self.attributes


_BINARY = SequenceOperator((1, 2), scalar=True)
_LOGICAL = SequenceOperator((2, 2))
_OVER_ROWS = SequenceOperator((1, 1), ("axis",), moves=True)
_SHAPE = SequenceOperator((1, 1))

OPERATORS: Mapping[str, SequenceOperator] = {
    "take": SequenceOperator((1, 1), ("axis", "from_end", "start", "step"), moves=True),
    "take_at": SequenceOperator((2, 2), ("axis",), moves=True),
    "concat": SequenceOperator((1, MANY), ("axis",), moves=True),
    **dict.fromkeys(("sum", "mean", "max", "min"), _OVER_ROWS),
    "cumsum": SequenceOperator((1, 1), ("axis",)),
    "argmax": SequenceOperator((1, 1), ("axis",)),
    **dict.fromkeys(("add", "sub", "mul", "equal", "not_equal", "greater", "less"), _BINARY),
    **dict.fromkeys(("logical_and", "logical_or"), _LOGICAL),
    "logical_not": SequenceOperator((1, 1)),
    "where": SequenceOperator((3, 3)),
    "cast": SequenceOperator((1, 1), ("to",)),
    "reshape": _SHAPE,
    "expand": _SHAPE,
}
"""Every operator by name."""

_UFUNCS: Mapping[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "less": np.less,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "where": np.where,
}


def compute_sequence(
    operator: str, attributes: Mapping[str, int], inputs: Sequence[Array], shape: tuple[int, ...], dtype: str
) -> Array:
    """The output of a sequence stage.

    Args:
        operator: A key of :data:`OPERATORS`.
        attributes: Its attributes by name.
        inputs: Whole values, without padding.
        shape: Of the output, in numbers.
        dtype: Of the output.

    Returns:
        The output; it may share memory with an input.

    Raises:
        ValueError: The inputs do not fit each other or ``shape``, or an index lies outside of its value.
    """
    result = _compute(operator, attributes, inputs, shape, dtype)
    if operator == "expand":
        return np.broadcast_to(result, shape).astype(dtype, copy=False)
    if operator != "reshape" and [d for d in result.shape if d != 1] != [d for d in shape if d != 1]:
        raise ValueError(f"{operator} makes {list(result.shape)}, expected {list(shape)}")
    return result.astype(dtype, copy=False).reshape(shape)


def _compute(
    operator: str, attributes: Mapping[str, int], inputs: Sequence[Array], shape: tuple[int, ...], dtype: str
) -> Array:
    first = inputs[0]
    axis = attributes.get("axis", 0)
    result: Array
    match operator:
        case "take":
            return _take(first, attributes, number_of_rows(first.shape, axis, shape))
        case "take_at":
            return _row(first, axis, int(inputs[1].reshape(-1)[0]))
        case "concat":
            return np.concatenate(inputs, axis)
        case "sum" | "mean":
            floats = first.dtype.kind == "f"
            wide = np.float64 if floats else np.dtype(dtype)
            result = first.sum(axis, dtype=wide, keepdims=True)
            return result / np.asarray(first.shape[axis], wide) if operator == "mean" else result
        case "max" | "min":
            result = getattr(first, operator)(axis, keepdims=True)
        case "cumsum":
            result = first.cumsum(axis, dtype=dtype)
        case "argmax":
            result = np.expand_dims(first.argmax(axis), axis)
        case "cast" | "reshape" | "expand":
            return first
        case _:
            scalar = [np.asarray(attributes["value"], first.dtype)] if "value" in attributes else []
            result = _UFUNCS[operator](*inputs, *scalar)
    return result


def number_of_rows(source: tuple[int, ...], axis: int, output: tuple[int, ...]) -> int:
    """How many rows ``take`` takes along dimension ``axis`` of ``source`` to fill ``output``; 1 if it drops it."""
    return output[axis] if len(output) == len(source) else 1


def _take(source: Array, attributes: Mapping[str, int], rows: int) -> Array:
    axis, step = attributes["axis"], attributes["step"]
    start = attributes["start"] + (source.shape[axis] if attributes["from_end"] else 0)
    at = start + step * np.arange(rows)
    inside = (at >= 0) & (at < source.shape[axis])
    if inside.all():
        return source.take(at, axis)
    result = np.zeros((*source.shape[:axis], rows, *source.shape[axis + 1 :]), source.dtype)
    before = (slice(None),) * axis
    result[(*before, inside)] = source.take(at[inside], axis)
    return result


def _row(source: Array, axis: int, index: int) -> Array:
    rows = source.shape[axis]
    if not -rows <= index < rows:
        raise ValueError(f"row {index} of {rows}")
    return source.take([index], axis)


class _OnHost(Protocol):
    """A stage or a node that moves rows or counts them."""

    @property
    def operator(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]: ...


def sought_tokens(stages: Iterable[_OnHost]) -> dict[str, int]:
    """By the name of a value: the token that some of ``stages`` compares it with.

    A text that is made up, to compare or to measure, ends with the one that its program looks for.
    """
    equal = (stage for stage in stages if stage.operator == "equal" and len(stage.inputs) == 1)
    return {stage.inputs[0]: dict(stage.attributes)["value"] for stage in equal}
