"""Weights of few bits in an ONNX file, read by ONNX Runtime's own operators, become the numbers that they stand for.

``MatMulNBits`` and ``GatherBlockQuantized`` hold blocks of whole numbers with a scale (and a zero point) each. They
compute a product, or a look-up, with ``(q - zero) * scale``. Activations stay as they are: an ``accuracy_level`` only
says how roughly a runtime may compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.graphs.errors import CompileError

__all__ = ["dequantise", "exact_activations"]

BITS = (2, 4, 8)


def dequantise(graph: OnnxGraph) -> OnnxGraph:
    """The graph with such weights as float32; the same graph if there are none.

    Raises:
        CompileError: A weight is no constant of the file, or of a form that is not known.
    """
    nodes: list[OnnxNode] = []
    weights = dict(graph.weights)
    for node in graph.nodes:
        write = _WRITERS.get(node.proto.op_type) if node.proto.domain == "com.microsoft" else None
        nodes.extend([node] if write is None else write(node, weights))
    return graph if len(weights) == len(graph.weights) else replace(graph, nodes=tuple(nodes), weights=weights)


def exact_activations(node: onnx.NodeProto) -> onnx.NodeProto:
    """The operator computing in float32, so that it can be a yardstick."""
    if node.op_type != "MatMulNBits":
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [attribute for attribute in copy.attribute if attribute.name != "accuracy_level"]
    del copy.attribute[:]
    copy.attribute.extend([*kept, helper.make_attribute("accuracy_level", 1)])
    return copy


def _product(node: OnnxNode, weights: dict[str, Array]) -> list[OnnxNode]:
    """``A @ W^T`` of ``W [N, K]`` in blocks along ``K``, and a bias."""
    given, operands = node.attributes, list(node.proto.input)
    rows, width, block = int(given["N"]), int(given["K"]), int(given["block_size"])
    if len(operands) > 4 and operands[4]:
        raise _unknown(node, "takes the rows of its weight in an order of its own (g_idx)")
    blocks = -(-width // block)
    packed = _weight(node, weights, 1).reshape(rows, -1)
    codes = _unpacked(node, packed, int(given.get("bits", 4)), blocks * block).reshape(rows, blocks, block)
    scales = _weight(node, weights, 2).astype(np.float32).reshape(rows, blocks)
    zeros = _zero_points(node, weights, rows, blocks, int(given.get("bits", 4)))
    table = ((codes - zeros[..., None]) * scales[..., None]).reshape(rows, -1)[:, :width]
    name, result = f"{operands[1]}.float", node.outputs[0]
    weights[name] = np.ascontiguousarray(table, np.float32)
    biased = len(operands) > 5 and bool(operands[5])
    product = f"{result}.product" if biased else result
    made = [
        helper.make_node("Transpose", [name], [f"{result}.weight"], perm=[1, 0]),
        helper.make_node("MatMul", [operands[0], f"{result}.weight"], [product]),
    ]
    made += [helper.make_node("Add", [product, operands[5]], [result])] if biased else []
    return [OnnxNode(proto, node.layer) for proto in made]


def _look_up(node: OnnxNode, weights: dict[str, Array]) -> list[OnnxNode]:
    """Rows of a table ``[rows, width]`` in blocks along its width."""
    given, operands = node.attributes, list(node.proto.input)
    bits, block = int(given.get("bits", 4)), int(given.get("block_size", 128))
    packed = _weight(node, weights, 0)
    along = int(given.get("quantize_axis", 1)) % packed.ndim
    if packed.ndim != 2 or packed.dtype != np.uint8 or along != 1 or given.get("gather_axis", 0) != 0:
        raise _unknown(node, "is no table of rows that are packed into bytes")
    rows, width = packed.shape[0], packed.shape[1] * (8 // bits)
    scales = _weight(node, weights, 2).astype(np.float32)
    blocks = -(-width // block)
    codes = _unpacked(node, packed, bits, width)
    zeros = _zero_points(node, weights, rows, blocks, bits)
    each = np.repeat(np.arange(blocks), block)[:width]
    name = f"{operands[0]}.float"
    weights[name] = ((codes - zeros[:, each]) * scales[:, each]).astype(np.float32)
    return [OnnxNode(helper.make_node("Gather", [name, operands[1]], [node.outputs[0]], axis=0), node.layer)]


def _zero_points(node: OnnxNode, weights: Mapping[str, Array], rows: int, blocks: int, bits: int) -> Array:
    """The zero point of every block, ``[rows, blocks]``; the middle of the range where the file has none."""
    operands = node.proto.input
    if len(operands) < 4 or not operands[3]:
        return np.full((rows, blocks), 1 << (bits - 1), np.float32)
    found = _weight(node, weights, 3)
    if found.dtype != np.uint8:
        return found.astype(np.float32).reshape(rows, blocks)
    return _unpacked(node, found.reshape(rows, -1), bits, blocks)


def _unpacked(node: OnnxNode, packed: Array, bits: int, count: int) -> Array:
    """The first ``count`` numbers of each row of bytes, the lowest bits first."""
    if bits not in BITS or packed.dtype != np.uint8:
        raise _unknown(node, f"has weights of {bits} bits in {packed.dtype}")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    numbers = numbers.reshape(len(packed), -1)
    if numbers.shape[1] < count:
        raise _unknown(node, f"holds {numbers.shape[1]} numbers a row where {count} are needed")
    return numbers[:, :count].astype(np.float32)


def _weight(node: OnnxNode, weights: Mapping[str, Array], at: int) -> Array:
    name = node.proto.input[at]
    if name not in weights:
        raise _unknown(node, f"computes its operand {at}, which must be a constant")
    return weights[name]


def _unknown(node: OnnxNode, problem: str) -> CompileError:
    return CompileError(node.place, f"{node.proto.op_type} {problem}", "use the file's float version")


_WRITERS: Mapping[str, Callable[[OnnxNode, dict[str, Array]], list[OnnxNode]]] = {
    "MatMulNBits": _product,
    "GatherBlockQuantized": _look_up,
}
"""By the operator's name."""
