"""Numbers for a view's values: how recognisers find out what operators do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twoheads.compiler.ir.op_view import Array, OpView
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.axes import axis_length, parse_axis

__all__ = [
    "EXACT",
    "close",
    "experiment_lengths",
    "lengths_of",
    "random_like",
    "repeat_heads",
    "scalar",
    "zeros_like",
]

EXACT = 1e-5
"""Largest difference, relative to the largest magnitude, of two results that differ by float32 rounding."""


def random_like(view: OpView, name: str, lengths: Mapping[str, int], seed: int) -> Array:
    """Normal random numbers in the shape and type of a value."""
    zeros = zeros_like(view, name, lengths)
    return np.random.default_rng(seed).standard_normal(zeros.shape).astype(zeros.dtype)


def zeros_like(view: OpView, name: str, lengths: Mapping[str, int]) -> Array:
    """Zeros in the shape and type of a value."""
    type_ = view.type(name)
    if type_ is None:
        raise InternalError(f"{name} is no tensor")
    shape = [size if isinstance(size, int) else axis_length(size, lengths) for size in type_.shape]
    return np.zeros(shape, type_.dtype)


def repeat_heads(array: Array, heads: int) -> Array:
    """``[1, kv_heads, ...]`` with every head repeated to ``heads``."""
    return np.repeat(array, heads // array.shape[1], axis=1) if array.shape[1] != heads else array


def close(got: Array, expected: Array) -> bool:
    """Equal up to rounding."""
    if got.shape != expected.shape:
        return False
    magnitude = float(np.abs(expected).max()) if expected.size else 0.0
    return bool(np.allclose(got, expected, rtol=0, atol=EXACT * max(magnitude, 1e-30)))


def scalar(view: OpView, operand: str | float, lengths: Mapping[str, int]) -> float | None:
    """The number that an operand is, whatever the input says and however long it is; ``None`` if it is no number."""
    if not isinstance(operand, str):
        return float(operand)
    type_ = view.type(operand)
    if type_ is None or any(size != 1 for size in type_.shape) or view.depends_on_content(operand):
        return None
    longer = {axis: length + 6 for axis, length in lengths.items()}
    first, second = (float(view.evaluate((operand,), sizes)[operand].reshape(())) for sizes in (lengths, longer))
    return first if first == second else None


def lengths_of(axis: str, length: int) -> dict[str, int]:
    """Lengths of the input axes for which ``axis`` has ``length`` rows."""
    parts = parse_axis(axis)
    if not parts.of:
        return {}
    total = length * parts.div - parts.add
    rest = {name: 3 for name in dict.fromkeys(parts.of[1:]) if name != parts.of[0]}
    left = total - sum(rest.get(name, 0) for name in parts.of)
    return {parts.of[0]: left // parts.of.count(parts.of[0])} | rest


def experiment_lengths(axes: tuple[str, str], length: int = 11) -> dict[str, int]:
    """Input lengths for which queries have ``length`` rows, and keys of another sequence two more."""
    return lengths_of(axes[1], length + 2) | lengths_of(axes[0], length)
