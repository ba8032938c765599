"""Weights as small whole numbers with a scale for every 32 of them, as ONNX Runtime's ``MatMulNBits`` reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.bundle_format import QUANTISATION_BLOCK

__all__ = ["dequantise", "quantise", "quantised_shapes"]

Array = npt.NDArray[Any]


def quantised_shapes(outer: int, inner: int, bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the values and of the scales of a weight ``[outer, inner]``."""
    blocks = inner // QUANTISATION_BLOCK
    return (outer, blocks, QUANTISATION_BLOCK * bits // 8), (outer, blocks)


def quantise(weight: Array, bits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Values and scales of a finite float32 weight ``[outer, inner]``, shaped as :func:`quantised_shapes` tells.

    The largest number of a block becomes the value farthest from the middle, exactly: 127 of 8 bits on either side, -8
    of 4 bits, whose scale has the sign for that (7 on both sides would waste a sixteenth of the range).
    """
    blocks: Array = weight.astype(np.float32, copy=False).reshape(len(weight), -1, QUANTISATION_BLOCK)
    places: Array = np.abs(blocks).argmax(-1)[..., None]
    largest: Array = np.take_along_axis(blocks, places, -1)
    scales: Array = np.abs(largest) / np.float32(127) if bits == 8 else largest / np.float32(-8)
    middle = 1 << (bits - 1)
    # A block of zeros, or of numbers so small that their scale is 0, is all middles.
    ratios = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    values: Array = (np.clip(np.rint(ratios), -middle, middle - 1) + middle).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scales[..., 0]


def dequantise(values: Array, scales: Array, bits: int) -> npt.NDArray[np.float32]:
    """The weight ``[outer, inner]`` that values and scales stand for."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
    centred = values.astype(np.float32) - np.float32(1 << (bits - 1))
    return np.asarray((centred * scales[..., None]).reshape(len(values), -1), np.float32)
