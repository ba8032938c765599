"""Weights as small whole numbers, every 32 with a scale, as ONNX Runtime's ``MatMulNBits`` reads them.

With 4 bits every 32 have an offset beside, which a small product of its own adds: kernels that subtract zeros which are
no whole numbers would turn the whole weight into float32 in every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.precision.whole_products import dequantise_whole
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK, WHOLE_VALUES, quantised_shapes

__all__ = ["MIDDLE_4", "dequantise", "expanded", "in_pieces", "quantise", "quantise_exactly"]

Array = npt.NDArray[Any]

MIDDLE_4 = 8
"""The value of 4 bits that stands for the offset alone."""


def quantise(weight: Array, bits: int) -> tuple[Array, ...]:
    """Values, scales and offsets of a finite float32 weight ``[outer, inner]``, as ``quantised_shapes`` tells.

    With 8 bits a block's largest number becomes 127 on its side of the middle, exactly. With 4 bits its least becomes 0
    and its largest 15; where its numbers lie on a coarser lattice of at most 16 points, that is kept as it is: weights
    that had 4 bits before, in a GGUF file, lose nothing.
    """
    blocks: Array = weight.astype(np.float32, copy=False).reshape(len(weight), -1, QUANTISATION_BLOCK)
    if bits == 4:
        return _quantise_4(blocks)
    scales: Array = np.abs(blocks).max(-1) / np.float32(127)
    # A block of zeros, or of numbers so small that their scale is 0, is all middles.
    ratios = np.divide(blocks, scales[..., None], out=np.zeros_like(blocks), where=scales[..., None] != 0)
    return (np.clip(np.rint(ratios), -128, 127) + 128).astype(np.uint8), scales


def _quantise_4(blocks: Array) -> tuple[Array, Array, Array]:
    # In double precision, in which no difference of two float32 numbers overflows.
    ordered: Array = np.sort(blocks.astype(np.float64), axis=-1)
    return _packed_4(blocks, _steps(ordered, ordered[..., -1] - ordered[..., 0]))


def _packed_4(blocks: Array, steps: Array) -> tuple[Array, Array, Array]:
    """Values, two a byte, scales and offsets of blocks ``[..., 32]`` whose extents are cut into so many steps."""
    least = blocks.min(-1).astype(np.float64)
    scales = ((blocks.max(-1) - least) / steps).astype(np.float32)
    # Numbers that are all the same are the offset, and a scale of 0.
    whole = scales.astype(np.float64)
    offsets = (least + MIDDLE_4 * whole).astype(np.float32)
    places, steps = blocks - least[..., None], whole[..., None]
    ratios = np.divide(places, steps, out=np.full(blocks.shape, float(MIDDLE_4)), where=steps != 0)
    values = np.clip(np.rint(ratios), 0, 15).astype(np.uint8)
    return values[..., 0::2] | (values[..., 1::2] << 4), scales, offsets


def _steps(ordered: Array, extent: Array) -> Array:
    """Into how many steps to cut each block's extent: 15, or fewer where all of its numbers lie on such a lattice."""
    gaps = np.diff(ordered, axis=-1)
    # What float32 rounds differently is no gap.
    gaps[gaps < extent[..., None] * 1e-3] = np.inf
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.rint(extent / gaps.min(-1))
        places = (ordered - ordered[..., :1]) / (extent / steps)[..., None]
        fits = (np.abs(places - np.rint(places)).max(-1) < 1e-2) & (steps >= 1) & (steps <= 15)
    return np.where(fits, steps, 15.0)


def quantise_exactly(weight: Array) -> tuple[Array, Array, Array] | None:
    """Values, scales and offsets of 4 bits that give every number of a float32 weight ``[outer, inner]`` back.

    Those of a GGUF file's Q4_0, Q4_1 and Q4_K do. They come as :func:`quantise` returns them; ``None`` where a number
    would become another, or is not finite. Zeros may lose their sign.
    """
    blocks: Array = weight.astype(np.float32, copy=False).reshape(-1, QUANTISATION_BLOCK)
    packed: Array = np.empty((len(blocks), QUANTISATION_BLOCK // 2), np.uint8)
    scales, offsets = np.empty((2, len(blocks)), np.float32)
    left = np.arange(len(blocks))
    # Nearly all blocks have the whole extent; one that has not may lie on a lattice of fewer steps.
    for steps in range(15, 0, -1):
        numbers = blocks[left]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite equals nothing
            parts = _packed_4(numbers, np.full(len(numbers), float(steps)))
            held = (dequantise(*(part[:, None] for part in parts)) == numbers).all(-1)
        packed[left[held]], scales[left[held]], offsets[left[held]] = (part[held] for part in parts)
        left = left[~held]
        if not len(left):
            rows = (len(weight), -1)
            return packed.reshape(*rows, QUANTISATION_BLOCK // 2), scales.reshape(rows), offsets.reshape(rows)
    return None


def dequantise(values: Array, scales: Array, offsets: Array | None) -> npt.NDArray[np.float32]:
    """The weight ``[outer, inner]``, or a stack, that values, scales and offsets (``None`` with 8 bits) stand for."""
    if offsets is None:
        numbers = (values.astype(np.float32) - np.float32(128)) * scales[..., None]
    else:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
        numbers = (values.astype(np.float32) - np.float32(MIDDLE_4)) * scales[..., None] + offsets[..., None]
    return np.asarray(numbers.reshape(*scales.shape[:-1], -1), np.float32)


def in_pieces(parts: tuple[Array, ...], *, cut: bool) -> tuple[Array, ...]:
    """What :func:`quantise` made of a weight ``[outer, inner]``, as ``quantised_shapes`` has it; pieces are views."""
    values, scales, *offsets = parts
    bits = 8 * values.shape[2] // QUANTISATION_BLOCK
    shapes = quantised_shapes(len(values), scales.shape[1] * QUANTISATION_BLOCK, bits, cut=cut)
    ends = np.cumsum([shape[1] for shape in shapes[: len(shapes) // 2]])[:-1]
    return *np.split(values, ends, 1), *np.split(scales, ends, 1), *offsets


def expanded(parts: Sequence[Array], *, transposed: bool) -> npt.NDArray[np.float32]:
    """The weight as its source has it, of what is stored of it: values, scales, and with 4 bits offsets.

    Of values and scales there are as many arrays as a row has pieces.
    """
    if parts[0].dtype == WHOLE_VALUES:
        whole = dequantise_whole(parts[0].T, parts[1])
        return np.ascontiguousarray(whole.T if transposed else whole)
    pieces = len(parts) // 2
    values = parts[0] if pieces == 1 else np.concatenate(parts[:pieces], -2)
    scales = parts[1] if pieces == 1 else np.concatenate(parts[pieces : 2 * pieces], -1)
    rows = dequantise(values, scales, parts[2 * pieces] if len(parts) % 2 else None)
    return np.ascontiguousarray(rows.swapaxes(-1, -2) if transposed else rows)
