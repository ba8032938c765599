"""An engine whose matrix products multiply whole numbers of 8 bits, as ONNX with QuantizeLinear and DequantizeLinear.

Everything else (norms, softmax, the log-sum-exp and its merge, residual sums) stays float32: it is a small part of the
arithmetic, and 8 bits ruin it. Every row of an operand is divided by its own largest magnitude first, and the product
multiplied by it: in exact arithmetic that changes nothing, and no row (a first token's, which is a thousand times as
large in many decoders) takes the levels of others. So all scales of activations are one number, known without a run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from twoheads.export.accelerators.rewrites.opset import AXES_INPUT_SINCE, opset
from twoheads.export.accelerators.rewrites.smooth_channels import is_weighted

__all__ = ["quantise_products"]

LEVELS = 127
"""The largest whole number. Symmetric: no zero has to be subtracted, and compilers that know of none take it."""

SMALLEST = 1e-30
"""What rows of zeros are divided by."""

AXES = "last_axis"


def quantise_products(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The model with its ``MatMul`` and ``Gemm`` in 8 bits, weights with a scale a column.

    Products of other forms than an engine's (factors beside the weight, operands of unknown rank) stay as they are.

    Args:
        model: An engine with its weights, of operator set 13 or newer.
        kept: Names of products that stay as they are.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    work = _Graph(constants, opset(model) >= AXES_INPUT_SINCE)
    ranks = _ranks(model)
    for node in graph.node:
        if node.name not in kept and is_weighted(node, constants):
            _multiply_weight(work, node)
        elif node.name not in kept and _is_dynamic(node, constants, ranks):
            _multiply(work, node, ranks[node.input[1]])
        else:
            work.nodes.append(node)
    read = {name for node in work.nodes for name in node.input} | {port.name for port in graph.output}
    nodes, used = list(work.nodes), [tensor for tensor in constants.values() if tensor.name in read]
    del graph.initializer[:], graph.value_info[:]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.initializer.extend(used)
    return quantised


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input)
        if value.type.tensor_type.HasField("shape")
    }


def _is_dynamic(node: onnx.NodeProto, constants: Collection[str], ranks: dict[str, int]) -> bool:
    """Whether ``node`` multiplies two stacks of computed matrices."""
    if node.op_type != "MatMul" or any(name in constants for name in node.input):
        return False
    sizes = [ranks.get(name, 0) for name in node.input]
    return sizes[0] == sizes[1] > 1


@dataclass(slots=True)
class _Graph:
    """A graph under construction: its constants and the nodes so far, and what was rounded."""

    constants: dict[str, onnx.TensorProto]
    axes_are_inputs: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    rounded: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def node(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [to], name=to, **attributes))
        return to

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def by_rows(self, name: str) -> tuple[str, str]:
        """``name`` with every row divided by its largest magnitude, and rounded; and these magnitudes."""
        if name not in self.rounded:
            size = self.node("Abs", name, to=f"{name}.size")
            if self.axes_are_inputs:
                axes = self.constant(AXES, np.array([-1], np.int64))
                largest = self.node("ReduceMax", size, axes, to=f"{name}.max", keepdims=1)
            else:
                largest = self.node("ReduceMax", size, to=f"{name}.max", axes=[-1], keepdims=1)
            smallest = self.constant("smallest", np.array(SMALLEST, np.float32))
            largest = self.node("Max", largest, smallest, to=f"{name}.largest")
            unit = self.node("Div", name, largest, to=f"{name}.unit")
            facts = self.constant("step", np.array(1 / LEVELS, np.float32)), self.constant("zero", np.array(0, np.int8))
            whole = self.node("QuantizeLinear", unit, *facts, to=f"{name}.int8")
            self.rounded[name] = self.node("DequantizeLinear", whole, *facts, to=f"{name}.rounded"), largest
        return self.rounded[name]


def _multiply_weight(work: _Graph, node: onnx.NodeProto) -> None:
    """``x w + b`` as ``largest(x) * (round(x / largest(x)) round(w)) + b``."""
    rows, largest = work.by_rows(node.input[0])
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    weight = _rounded_weight(work, node.input[1], axis=0 if transposed else 1)
    result = node.output[0]
    attributes = {"transB": 1} if transposed else {}
    product = work.node(node.op_type, rows, weight, to=f"{result}.rows", **attributes)
    if node.op_type == "Gemm" and len(node.input) > 2:
        scaled = work.node("Mul", product, largest, to=f"{result}.product")
        work.node("Add", scaled, node.input[2], to=result)
    else:
        work.node("Mul", product, largest, to=result)


def _rounded_weight(work: _Graph, name: str, axis: int) -> str:
    """The constant matrix ``name`` as 8 bits with a scale for every index of ``axis``."""
    found = work.rounded.get(name)
    if found is not None:
        return found[0]
    array = numpy_helper.to_array(work.constants[name])
    step = (np.maximum(np.abs(array).max(1 - axis), SMALLEST) / LEVELS).astype(np.float32)
    whole = np.rint(array / np.expand_dims(step, 1 - axis)).clip(-LEVELS, LEVELS).astype(np.int8)
    parts = (
        work.constant(f"{name}.int8", whole),
        work.constant(f"{name}.steps", step),
        work.constant(f"{name}.zeros", np.zeros(step.shape, np.int8)),
    )
    work.rounded[name] = work.node("DequantizeLinear", *parts, to=f"{name}.rounded", axis=axis), ""
    return work.rounded[name][0]


def _multiply(work: _Graph, node: onnx.NodeProto, rank: int) -> None:
    """Two computed operands: queries and keys, or softmax and values.

    Keys come transposed: they have a factor a column, which the product is multiplied by. The factors of values go into
    the weights that they are added up by, before these are rounded.
    """
    left, right = node.input
    result = node.output[0]
    swap = [*range(rank - 2), rank - 1, rank - 2]
    transpose = _transposing(work, right, swap)
    if transpose is not None:
        rows, row_factors = work.by_rows(left)
        keys, key_factors = work.by_rows(transpose.input[0])
        columns = work.node("Transpose", keys, to=f"{right}.columns", perm=swap)
        column_factors = work.node("Transpose", key_factors, to=f"{right}.factors", perm=swap)
        product = work.node("MatMul", rows, columns, to=f"{result}.rows")
        scaled = work.node("Mul", product, row_factors, to=f"{result}.scaled")
        work.node("Mul", scaled, column_factors, to=result)
        return
    values, factors = work.by_rows(right)
    across = work.node("Transpose", factors, to=f"{right}.factors", perm=swap)
    rows, largest = work.by_rows(work.node("Mul", left, across, to=f"{left}.{right}"))
    product = work.node("MatMul", rows, values, to=f"{result}.rows")
    work.node("Mul", product, largest, to=result)


def _transposing(work: _Graph, name: str, swap: list[int]) -> onnx.NodeProto | None:
    """The node that gives ``name`` if all it does is to swap the last two axes."""
    node = next((node for node in work.nodes if name in node.output), None)
    if node is None or node.op_type != "Transpose":
        return None
    return node if any(a.name == "perm" and list(a.ints) == swap for a in node.attribute) else None
