"""Brings an engine's constants into the range of half precision, or refuses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from twoheads.graphs.errors import CompileError

__all__ = ["ENDLESS", "LARGEST", "bring_into_half_range"]

LARGEST = 65504.0
"""The largest number that float16 has."""

ENDLESS = 1e30
"""Constants from here on stand for infinity: scores of hidden keys."""

FAR = 3e4
"""What stands for infinity in half precision: half of the range, so that a score may be added to it."""


def bring_into_half_range(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model if all its constants are float16 numbers, else one whose infinities are ``FAR``.

    Args:
        model: An engine with its weights; of references to weights nothing is known.
        name: What errors call it.

    Raises:
        CompileError: A constant is beyond float16's range and stands for no infinity.
    """
    replaced = {
        tensor.name: numpy_helper.from_array(within, tensor.name)
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL
        and (within := _within(numpy_helper.to_array(tensor), f"{name}: {tensor.name}")) is not None
    }
    if not replaced:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(replaced[tensor.name])
    return changed


def _within(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any] | None:
    """``values`` inside float16's range; ``None`` if they are there already."""
    if values.dtype.kind != "f":
        return None
    size = np.abs(values)
    beyond = size > LARGEST
    if not beyond.any():
        return None
    if (size[beyond] < ENDLESS).any():
        largest = float(size[beyond & (size < ENDLESS)].max())
        raise CompileError(where, f"holds {largest:g}, and float16 ends at {LARGEST:g}", "build in fp32")
    return np.where(beyond, np.sign(values) * FAR, values).astype(values.dtype)
