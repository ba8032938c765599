"""What an array of a file has for each of its tokens: what could be made anew for another number of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from twoheads.compiler.frontend.onnx.model.read_file import Array

__all__ = ["alike", "changed", "counts", "multiples", "triangle"]


def changed(before: Sequence[int], after: Sequence[int]) -> set[int]:
    """The dimensions of a value whose size is another one at another number of tokens, or of inputs."""
    return {at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


def multiples(array: Array, length: int) -> int | None:
    """The axis along which an array is 0, 1, 2, ... times its second entry, to the bit; ``None`` if there is none."""
    for at, size in enumerate(array.shape):
        if size == length and array.dtype.kind in "if" and array.any():
            counts = (
                np.arange(length).astype(array.dtype).reshape([-1 if at == axis else 1 for axis in range(array.ndim)])
            )
            if np.array_equal(array, counts * array.take([1], at)):
                return at
    return None


def alike(array: Array, axes: Sequence[int]) -> bool:
    """Whether an array's entries along ``axes`` are all the same."""
    first = array[tuple(slice(0, 1 if at in axes else None) for at in range(array.ndim))]
    return bool((array == first).all())


def triangle(array: Array, axes: Sequence[int]) -> tuple[Array, Array] | None:
    """The number up to the diagonal and the one behind it, where an array of pairs of tokens is that."""
    if tuple(axes) != (array.ndim - 2, array.ndim - 1) or prod(array.shape[:-2]) != 1:
        return None
    pairs = array.reshape(array.shape[-2:])
    seen, hidden = pairs[0, 0], pairs[0, -1]
    return (seen, hidden) if np.array_equal(pairs, np.where(np.tri(len(pairs), dtype=bool), seen, hidden)) else None


def counts(array: Array, axis: int) -> bool:
    """Whether the numbers are 0, 1, 2, ... along ``axis``."""
    return bool((np.moveaxis(array, axis, -1) == np.arange(array.shape[axis])).all())
