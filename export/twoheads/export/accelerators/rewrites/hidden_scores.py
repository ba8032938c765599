"""Brings minus infinity, the score of a hidden key, into the range that 8 bits divide into 256 levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["raise_hidden_scores", "raise_masks"]


def raise_hidden_scores(model: onnx.ModelProto, score: float) -> onnx.ModelProto:
    """The model with ``score`` instead of minus infinity in its constants; the model itself where it has none.

    That is an approximation: a hidden key weighs ``exp(score)`` of what it would weigh if it were seen. References to
    weights are left alone.
    """
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    changed = False
    for tensor in raised.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and np.isneginf(array).any():
            tensor.CopyFrom(numpy_helper.from_array(_raised(array, score), tensor.name))
            changed = True
    return raised if changed else model


def raise_masks(inputs: Mapping[str, npt.NDArray[Any]], score: float) -> dict[str, npt.NDArray[Any]]:
    """The same for the values of an engine's inputs."""
    return {name: _raised(array, score) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def _raised(array: npt.NDArray[Any], score: float) -> npt.NDArray[Any]:
    return np.where(np.isneginf(array), np.asarray(score, array.dtype), array)
