"""Rewrites of a graph, in place, that some compiler needs to keep a node on its accelerator."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["divide_by_reciprocals", "split_wide_products"]


def divide_by_reciprocals(graph: onnx.GraphProto) -> None:
    """``x * (1 / s)`` becomes ``x / s``, where the reciprocal is read once."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(port.name for port in graph.output)
    reciprocals = {node.output[0]: node for node in graph.node if node.op_type == "Reciprocal"}
    dropped: set[str] = set()
    for node in graph.node:
        found = [at for at in range(2) if node.op_type == "Mul" and readers[node.input[at]] == 1]
        at = next((at for at in found if node.input[at] in reciprocals), None)
        if at is not None:
            dropped.add(node.input[at])
            node.op_type = "Div"
            node.input[:] = [node.input[1 - at], reciprocals[node.input[at]].input[0]]
    if dropped:
        kept = [node for node in graph.node if node.output[0] not in dropped]
        del graph.node[:]
        graph.node.extend(kept)


def split_wide_products(graph: onnx.GraphProto, widest: int) -> None:
    """``Gemm`` with a constant weight of more than ``widest`` columns becomes several, whose results are joined."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "Gemm" else None
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if weight is None or len(node.input) > 2 or not transposed or weight.dims[0] <= widest:
            nodes.append(node)
            continue
        nodes += _parts(graph, node, weight, -(-weight.dims[0] // widest))
    if len(nodes) > len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _parts(graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto, count: int) -> list[onnx.NodeProto]:
    """Adds ``count`` pieces of ``weight [columns, depth]`` to ``graph``; the nodes that stand for ``node``."""
    nodes: list[onnx.NodeProto] = []
    for number, piece in enumerate(_pieces(weight, count)):
        graph.initializer.append(piece)
        part = onnx.NodeProto()
        part.CopyFrom(node)
        part.name = f"{node.name}.{number}"
        part.input[1] = piece.name
        part.output[0] = f"{node.output[0]}.{number}"
        nodes.append(part)
    results = [part.output[0] for part in nodes]
    return [*nodes, helper.make_node("Concat", results, [node.output[0]], name=f"{node.name}.joined", axis=1)]


def _pieces(weight: onnx.TensorProto, count: int) -> list[onnx.TensorProto]:
    """``weight`` cut along its first axis; a reference to data elsewhere gives references without data."""
    if weight.data_location != onnx.TensorProto.EXTERNAL:
        arrays = np.array_split(numpy_helper.to_array(weight), count)
        return [numpy_helper.from_array(array, f"{weight.name}.{at}") for at, array in enumerate(arrays)]
    rows = [len(piece) for piece in np.array_split(np.empty((weight.dims[0], 0)), count)]
    return [
        onnx.TensorProto(
            name=f"{weight.name}.{at}",
            data_type=weight.data_type,
            dims=[size, *weight.dims[1:]],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for at, size in enumerate(rows)
    ]
