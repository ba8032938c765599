"""An engine whose products' weights are small whole numbers with scales, for compilers that multiply them as such.

With 8 bits a column of the product has a scale, and no zero has to be subtracted. With 4 bits every 32 numbers of it
have a scale and a zero, as ``compile --weights int4`` has them: weights that had 4 bits before, in a GGUF file, lose
nothing. The model says it in operators (Cast, Sub, Mul, Reshape), so that it means the same to every compiler; those
that know such weights keep them small, and what is multiplied is float32. Tables and everything else stay.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from twoheads.export.accelerators.rewrites.opset import opset
from twoheads.export.accelerators.rewrites.smooth_channels import is_weighted
from twoheads.export.precision.quantised_arrays import MIDDLE_4, quantise
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK

__all__ = ["compress_weights"]

FOUR_BITS_SINCE = 21
"""The operator set that casts from 4 bits."""

Array = npt.NDArray[Any]


def compress_weights(model: onnx.ModelProto, bits: int, scores: Collection[str] = ()) -> onnx.ModelProto:
    """The model with the weights of its products in whole numbers.

    Args:
        model: An engine with its weights.
        bits: Of a number, 8 or 4. Columns whose length is no multiple of 32 have 8.
        scores: Names of the head's weights, which have 8 bits: a class with a wrong score is wrong at once.
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
                array = numpy_helper.to_array(constants[key[0]]).astype(np.float32)
                four = bits == 4 and key[0] not in scores and array.shape[inner] % QUANTISATION_BLOCK == 0
                added, tensors = (_four_bits if four else _eight_bits)(*key, array)
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


def _eight_bits(name: str, inner: int, array: Array) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """What computes the weight ``name``, and the constants that it reads; sums run over the axis ``inner``."""
    base = f"{name}.w8.{inner}"
    steps = np.abs(array).max(inner, keepdims=True) / np.float32(127)
    whole = np.rint(np.divide(array, steps, out=np.zeros_like(array), where=steps != 0)).astype(np.int8)
    parts = [numpy_helper.from_array(whole, f"{base}.whole"), numpy_helper.from_array(steps, f"{base}.steps")]
    return [_cast(base), _node("Mul", f"{base}.cast", parts[1].name, to=base)], parts


def _four_bits(name: str, inner: int, array: Array) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """The same in blocks of a column, of which each has a scale and a zero."""
    base = f"{name}.w4.{inner}"
    packed, scales, offsets = quantise(array if inner else array.T, 4)
    same = scales == 0  # numbers that are all the same: a step of that size above zero
    steps = np.where(same, offsets, scales)
    zeros = MIDDLE_4 - np.divide(offsets, scales, out=np.ones_like(scales), where=~same)
    whole = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], QUANTISATION_BLOCK)
    ordered = [one if inner else np.moveaxis(one, 0, -1) for one in (whole, zeros[..., None], steps[..., None])]
    parts = [
        _packed(f"{base}.whole", ordered[0]),
        numpy_helper.from_array(np.ascontiguousarray(ordered[1], np.float32), f"{base}.zeros"),
        numpy_helper.from_array(np.ascontiguousarray(ordered[2], np.float32), f"{base}.steps"),
        numpy_helper.from_array(np.array(array.shape, np.int64), f"{base}.shape"),
    ]
    nodes = [
        _cast(base),
        _node("Sub", f"{base}.cast", parts[1].name, to=f"{base}.off"),
        _node("Mul", f"{base}.off", parts[2].name, to=f"{base}.scaled"),
        _node("Reshape", f"{base}.scaled", parts[3].name, to=base),
    ]
    return nodes, parts


def _packed(name: str, whole: Array) -> TensorProto:
    """Whole numbers from 0 to 15, two to a byte, the first in the lower half."""
    flat = whole.reshape(-1)
    pairs = flat[0::2] | (flat[1::2] << 4)
    return TensorProto(name=name, data_type=TensorProto.UINT4, dims=whole.shape, raw_data=pairs.tobytes())


def _cast(base: str) -> onnx.NodeProto:
    return _node("Cast", f"{base}.whole", to=f"{base}.cast", to_type=TensorProto.FLOAT)


def _node(operator: str, *inputs: str, to: str, to_type: int | None = None) -> onnx.NodeProto:
    attributes: dict[str, Any] = {} if to_type is None else {"to": to_type}
    return helper.make_node(operator, list(inputs), [to], to, **attributes)
