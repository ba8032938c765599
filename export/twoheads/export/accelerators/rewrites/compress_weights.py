"""An engine whose products' weights are small whole numbers with scales, for compilers that multiply them as such.

Symmetric, so that no zero has to be subtracted. With 8 bits a column of the product has a scale; with 4 bits every 128
numbers of it have. The model says it in operators (Cast, Mul, Reshape), so that it means the same to every compiler;
those that know such weights keep them small, and what is multiplied is float32. Tables and everything else stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from twoheads.export.accelerators.rewrites.opset import opset
from twoheads.export.accelerators.rewrites.smooth_channels import is_weighted

__all__ = ["GROUP", "compress_weights", "whole_tensor"]

GROUP = 128
"""Numbers of a column that share a scale, in 4 bits."""

FOUR_BITS_SINCE = 21
"""The operator set that casts from 4 bits."""

Array = npt.NDArray[Any]


def compress_weights(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The model with the weights of its products in whole numbers.

    Args:
        model: An engine with its weights.
        bits: Of a number, 8 or 4.
    """
    if bits == 4 and opset(model) < FOUR_BITS_SINCE:
        model = version_converter.convert_version(model, FOUR_BITS_SINCE)
    compressed = onnx.ModelProto()
    compressed.CopyFrom(model)
    graph = compressed.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        if is_weighted(node, constants):
            inner = 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
            key = node.input[1], inner
            if key not in made:
                added, tensors = _weight(*key, numpy_helper.to_array(constants[key[0]]), bits)
                nodes += added
                graph.initializer.extend(tensors)
                made[key] = added[-1].output[0]
            node.input[1] = made[key]
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return compressed


def _weight(name: str, inner: int, array: Array, bits: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """What computes the weight ``name``, and the constants that it reads; sums run over the axis ``inner``."""
    length = array.shape[inner]
    group = GROUP if bits == 4 and length % GROUP == 0 else length
    sizes = (*array.shape[:inner], length // group, group, *array.shape[inner + 1 :])
    grouped, axis = array.astype(np.float32).reshape(sizes), inner + 1
    levels = 2 ** (bits - 1) - 1
    steps = np.abs(grouped).max(axis, keepdims=True) / np.float32(levels)
    whole = np.rint(np.divide(grouped, steps, out=np.zeros_like(grouped), where=steps != 0)).astype(np.int8)
    base = f"{name}.w{bits}.{inner}"
    parts = [
        whole_tensor(f"{base}.whole", whole, bits),
        numpy_helper.from_array(steps.astype(np.float32), f"{base}.steps"),
        numpy_helper.from_array(np.array(array.shape, np.int64), f"{base}.shape"),
    ]
    nodes = [
        helper.make_node("Cast", [parts[0].name], [f"{base}.cast"], f"{base}.cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{base}.cast", parts[1].name], [f"{base}.scaled"], f"{base}.scaled"),
        helper.make_node("Reshape", [f"{base}.scaled", parts[2].name], [base], base),
    ]
    return nodes, parts


def whole_tensor(name: str, whole: Array, bits: int) -> TensorProto:
    """The whole numbers, two to a byte where they have 4 bits, the first in the lower half."""
    if bits == 8:
        return numpy_helper.from_array(whole, name)
    flat = np.append(whole.reshape(-1), np.zeros(whole.size % 2, np.int8)).view(np.uint8) & 0xF
    packed = flat[0::2] | (flat[1::2] << 4)
    return TensorProto(name=name, data_type=TensorProto.INT4, dims=whole.shape, raw_data=packed.tobytes())
