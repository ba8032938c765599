"""Moves the size of a product's channels from activations, where a few are large, into the weights: an exact rewrite.

``x w = (x / f) (f w)`` for any factor ``f`` a channel. With ``f = sqrt(size of x / size of w)`` both have channels
of one size, and 8 bits for a row lose little of each. This is SmoothQuant (Xiao et al., 2023, arXiv 2211.10438) with
its alpha of one half, but that the division stays an operator: a norm in front may serve other readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

__all__ = ["channel_sizes", "is_weighted", "smooth_channels"]

SMALLEST = 1e-5
"""Channels are taken to have at least this share of the largest one's size: nothing is divided by zero."""

Arrays = Mapping[str, npt.NDArray[Any]]


def is_weighted(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether ``node`` multiplies activations by a constant matrix and does nothing else, but for adding a bias."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] in constants or node.input[1] not in constants:
        return False
    plain = all(a.f == 1 if a.name in ("alpha", "beta") else not a.i for a in node.attribute if a.name != "transB")
    return plain and len(constants[node.input[1]].dims) == 2


def smooth_channels(model: onnx.ModelProto, samples: Sequence[Arrays]) -> onnx.ModelProto:
    """The same arithmetic, its products' channels smoothed by the sizes that they have in ``samples``.

    Args:
        model: An engine with its weights.
        samples: Its inputs, call by call.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    graph = smoothed.graph
    for node in graph.node:
        if is_weighted(node, constants):
            readers.setdefault(node.input[0], []).append(node)
    divisions: dict[str, onnx.NodeProto] = {}
    for name, size in channel_sizes(model, tuple(readers), samples).items():
        weights = [_by_column(node, constants) for node in readers[name]]
        factors = _factors(size, np.abs(np.concatenate(weights)).max(0))
        for node, weight in zip(readers[name], weights, strict=True):
            _rebind(graph, node, weight * factors)
        graph.initializer.append(numpy_helper.from_array(np.reciprocal(factors), f"{name}.factors"))
        divisions[name] = helper.make_node("Mul", [name, f"{name}.factors"], [f"{name}.smooth"], name=f"{name}.smooth")
    _insert(graph, divisions)
    return smoothed


def channel_sizes(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Arrays]) -> dict[str, Any]:
    """The largest magnitude ``[channels]`` of every value of ``names`` that is not zero everywhere."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    inputs = [port.name for port in model.graph.input]
    inside = [name for name in names if name not in inputs]
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    sizes = {name: np.float32(0) for name in names}
    session = (
        onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"]) if inside else None
    )
    for sample in samples:
        given = {name: sample[name] for name in inputs}
        values: Sequence[Any] = [] if session is None else session.run(None, given)
        found = {**given, **dict(zip(inside, values, strict=True))}
        for name in names:
            rows = np.abs(found[name]).reshape(-1, found[name].shape[-1])
            sizes[name] = np.maximum(sizes[name], np.where(np.isfinite(rows), rows, 0).max(0))
    return {name: size for name, size in sizes.items() if np.any(size)}


def _by_column(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> npt.NDArray[np.float32]:
    """The weight ``[columns, channels]`` of a product."""
    weight = numpy_helper.to_array(constants[node.input[1]])
    return weight if _is_transposed(node) else weight.T


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _factors(size: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What channels are divided by: of activations and weights with these sizes, 1 in the geometric mean."""
    size, weight = (np.maximum(array, SMALLEST * max(array.max(), SMALLEST)) for array in (size, weight))
    logarithms = (np.log(size) - np.log(weight)) / 2
    factors: npt.NDArray[np.float32] = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return factors


def _rebind(graph: onnx.GraphProto, node: onnx.NodeProto, weight: npt.NDArray[np.float32]) -> None:
    """Lets ``node`` multiply its smoothed input by ``weight [columns, channels]``."""
    name = f"{node.output[0]}.weight"
    array = weight if _is_transposed(node) else weight.T
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    node.input[:] = [f"{node.input[0]}.smooth", name, *node.input[2:]]


def _insert(graph: onnx.GraphProto, divisions: Mapping[str, onnx.NodeProto]) -> None:
    """Puts every division behind what it divides, and drops weights that nobody reads any more."""
    nodes = [divisions[port.name] for port in graph.input if port.name in divisions]
    for node in graph.node:
        nodes += [node, *(divisions[name] for name in node.output if name in divisions)]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
