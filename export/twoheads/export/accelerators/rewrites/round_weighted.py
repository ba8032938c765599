"""An engine whose products with weights multiply whole numbers: activations of 16 bits, weights of 8 or 4, as QDQ.

A column of a weight has a scale; in 4 bits every 128 numbers of it have, or 64 where 128 do not divide it: whole
numbers from 1 to 15 times the column's, as Qualcomm's blocks are. What is multiplied, and the product, have one each,
by the magnitudes that they have in runs over a text; twice that fits, for which 16 bits spare one. Biases, norms,
softmax and attention stay in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from twoheads.export.accelerators.rewrites.opset import opset
from twoheads.export.accelerators.rewrites.smooth_channels import channel_sizes, is_weighted

__all__ = ["round_weighted", "whole_tensor"]

SINCE = 21
"""The operator set in which whole numbers of 16 and 4 bits are quantised and dequantised."""

ZERO = 32768
"""The whole number of 16 bits that stands for zero."""

ROOM = 2.0
"""How much larger than in the text's runs a value may be."""

GROUPS = (128, 64)
"""Numbers of a column that share a scale in 4 bits: the first that divides it."""

FINEST = 15
"""By how much the scale of a group may be larger than its column's."""

SMALLEST = 1e-6
"""What is zero in all runs is taken to be so large."""

Arrays = Mapping[str, npt.NDArray[Any]]


def round_weighted(model: onnx.ModelProto, bits: int, samples: Sequence[Arrays]) -> onnx.ModelProto:
    """The model with its ``MatMul`` and ``Gemm`` by constant matrices in whole numbers.

    Args:
        model: An engine with its weights.
        bits: Of a weight, 8 or 4.
        samples: Its inputs, call by call.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model if opset(model) >= SINCE else version_converter.convert_version(model, SINCE))
    graph = rounded.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if is_weighted(node, constants)]
    names = tuple(dict.fromkeys(name for node in products for name in (node.input[0], *node.output)))
    sizes = {name: float(size.max()) for name, size in channel_sizes(rounded, names, samples).items()}
    work = _Work(graph, sizes, bits)
    for node in list(graph.node):
        if is_weighted(node, constants):
            work.multiply(node, numpy_helper.to_array(constants[node.input[1]]))
        elif node.op_type == "Tanh":
            work.keep_apart(node)
        else:
            work.nodes.append(node)
    read = {name for node in work.nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(work.nodes)
    graph.initializer.extend(kept)
    return rounded


@dataclass(slots=True)
class _Work:
    """A graph under construction: its constants, what is known of it, and the nodes so far."""

    graph: onnx.GraphProto
    sizes: Mapping[str, float]
    bits: int
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    made: set[str] = field(default_factory=set[str])

    def multiply(self, node: onnx.NodeProto, weight: npt.NDArray[Any]) -> None:
        """``x w + b`` by whole numbers, but for ``b``."""
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        result, bias = node.output[0], node.input[2:]
        product = f"{result}.product" if bias else result
        rows, axis = (weight.T, 0) if transposed else (weight, 1)
        group = next((size for size in GROUPS if self.bits == 4 and len(rows) % size == 0), None)
        if group is not None:  # as the product that Qualcomm's compiler knows groups of
            operands = self._activation(node.input[0]), self._grouped(f"{node.input[1]}.{axis}", rows, group)
            self._node("MatMul", *operands, to=f"{result}.exact")
        else:
            operands = self._activation(node.input[0]), self._weight(node.input[1], weight, axis)
            self._node(node.op_type, *operands, to=f"{result}.exact", **({"transB": 1} if transposed else {}))
        self._activation(f"{result}.exact", to=product, size=self.sizes.get(result, 0.0))
        if bias:
            self._node("Add", product, bias[0], to=result)

    def keep_apart(self, node: onnx.NodeProto) -> None:
        """``tanh x`` as ``-tanh -x``, the same number.

        Between whole numbers on both sides Qualcomm's provider (2.7.0) makes it one of whole numbers, off by 2.
        """
        (value,), (result,) = node.input, node.output
        self._node("Neg", value, to=f"{result}.against")
        self._node("Tanh", f"{result}.against", to=f"{result}.negative")
        self._node("Neg", f"{result}.negative", to=result)

    def _activation(self, name: str, to: str = "", size: float | None = None) -> str:
        """``name`` in 16 bits, and that as a number again."""
        to = to or f"{name}.a16"
        if to not in self.made:
            largest = max(self.sizes.get(name, 0.0) if size is None else size, SMALLEST) * ROOM
            facts = (
                self._constant(f"{to}.step", np.array(largest / (ZERO - 1), np.float32)),
                self._constant(f"{to}.zero", np.array(ZERO, np.uint16)),
            )
            self._node("QuantizeLinear", name, *facts, to=f"{to}.whole")
            self._node("DequantizeLinear", f"{to}.whole", *facts, to=to)
        return to

    def _weight(self, name: str, array: npt.NDArray[Any], axis: int) -> str:
        """The matrix ``name`` in whole numbers with a scale for every index of ``axis``."""
        to = f"{name}.w{self.bits}.{axis}"
        if to not in self.made:
            levels = 2 ** (self.bits - 1) - 1
            step = (np.maximum(np.abs(array).max(1 - axis), SMALLEST) / levels).astype(np.float32)
            whole = np.rint(array / np.expand_dims(step, 1 - axis)).clip(-levels, levels).astype(np.int8)
            for tensor in (
                whole_tensor(f"{to}.whole", whole, self.bits),
                numpy_helper.from_array(step, f"{to}.steps"),
                whole_tensor(f"{to}.zeros", np.zeros(step.shape, np.int8), self.bits),
            ):
                self.graph.initializer.append(tensor)
            self._node("DequantizeLinear", f"{to}.whole", f"{to}.steps", f"{to}.zeros", to=to, axis=axis)
        return to

    def _grouped(self, name: str, rows: npt.NDArray[Any], group: int) -> str:
        """The matrix ``rows``, which sums run over the rows of, with a scale for ``group`` of them.

        The compiler rounds: it takes the numbers themselves beside the scales, in two factors.
        """
        to = f"{name}.w4.{group}"
        if to not in self.made:
            blocks = rows.reshape(len(rows) // group, group, -1)
            needed = np.maximum(np.abs(blocks).max(1), SMALLEST) / 7
            column = (needed.max(0) / FINEST).astype(np.float32)
            factors = np.ceil(needed / column * (1 - 1e-6)).clip(1, FINEST).astype(np.uint8)
            zeros = whole_tensor(f"{to}.zeros", np.zeros(factors.shape, np.int8), 4)
            self.graph.initializer.append(zeros)
            exact = self._constant(f"{to}.exact", np.ascontiguousarray(rows, np.float32))
            both = self._constant(f"{to}.factors", factors), self._constant(f"{to}.column", column)
            none = self._constant(f"{to}.none", np.zeros(column.shape, np.uint8))
            known = self._constant(f"{to}.known", factors * column)
            self._node("DequantizeLinear", *both, none, to=f"{to}.steps", axis=1)
            blocked: dict[str, Any] = {"axis": 0, "block_size": group}
            self._node("QuantizeLinear", exact, f"{to}.steps", zeros.name, to=f"{to}.whole", **blocked)
            self._node("DequantizeLinear", f"{to}.whole", known, zeros.name, to=to, **blocked)
        return to

    def _constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, operator: str, *inputs: str, to: str, **attributes: Any) -> None:
        self.made.add(to)
        self.nodes.append(helper.make_node(operator, list(inputs), [to], name=to, **attributes))


def whole_tensor(name: str, whole: npt.NDArray[Any], bits: int) -> TensorProto:
    """The whole numbers, two to a byte where they have 4 bits, the first in the lower half."""
    if bits == 8:
        return numpy_helper.from_array(whole, name)
    flat = np.append(whole.reshape(-1), np.zeros(whole.size % 2, np.int8)).view(np.uint8) & 0xF
    packed = flat[0::2] | (flat[1::2] << 4)
    return TensorProto(name=name, data_type=TensorProto.INT4, dims=whole.shape, raw_data=packed.tobytes())
