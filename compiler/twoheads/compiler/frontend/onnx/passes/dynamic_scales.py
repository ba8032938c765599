"""Activations that are quantised while a model runs, written out: the largest and smallest of them are row values.

``quantize_dynamic`` of ONNX Runtime scales an activation by its range over *all* tokens (``DynamicQuantizeLinear``) and
multiplies whole numbers (``MatMulInteger``, ``ConvInteger``). A block alone can't know that range; two passes can: the
range of each token and its extremes over the tokens, then each token by the scale that they make. So every token has
the file's own scale, to the bit. Products of whole numbers become products of the same numbers as floats, whose
sums are rounded as every model's are; weights of eight bits become the numbers that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

__all__ = ["QUANTISED", "spell_dynamic_scales"]

AXES_ARE_OPERANDS = 18
"""The operator set since which ``ReduceMax`` takes its axes as an operand."""

LARGEST_CODE = 255.0

FLOAT_FILE = "quantise products with weights only (MatMulConstBOnly=True), or use the file's float version"


def spell_dynamic_scales(graph: OnnxGraph, types: Mapping[str, TensorType]) -> OnnxGraph:
    """The graph with such operators written out; the same graph if there are none.

    Args:
        graph: What to rewrite.
        types: Of its values.

    Raises:
        CompileError: An operator of them quantises something of two token axes, or multiplies by no weight.
    """
    if all(node.proto.op_type not in QUANTISED for node in graph.nodes):
        return graph
    spelling = _Spelling(graph, types, dict(graph.weights))
    for node in graph.nodes:
        _WRITERS.get(node.proto.op_type, _Spelling.keep)(spelling, node)
    return replace(graph, nodes=tuple(spelling.nodes), weights=spelling.weights)


@dataclass(slots=True)
class _Spelling:
    """The graph so far.

    Attributes:
        floats: By the name of a value of eight bits, that of the same numbers as floats.
    """

    graph: OnnxGraph
    types: Mapping[str, TensorType]
    weights: dict[str, Array]
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    floats: dict[str, str] = field(default_factory=dict[str, str])
    layer: str = ""

    def add(self, operator: str, *operands: str | float, to: str, **attributes: Any) -> str:
        """Appends an operator; numbers among its operands become its own constants."""
        names = [operand if isinstance(operand, str) else "number" for operand in operands]
        held = {at: np.array(op, np.float32) for at, op in enumerate(operands) if not isinstance(op, str)}
        self.nodes.append(OnnxNode(helper.make_node(operator, names, [to], **attributes), self.layer, constants=held))
        return to

    def keep(self, node: OnnxNode) -> None:
        """Appends an operator as it is."""
        self.nodes.append(node)

    def quantise(self, node: OnnxNode) -> None:
        """``DynamicQuantizeLinear``: codes, their scale and their zero point."""
        self.layer = node.layer
        codes, scale, zero = node.proto.output
        self.range(node, node.proto.input[0], scale, f"{codes}.zero")
        self.codes(node.proto.input[0], scale, f"{codes}.zero", f"{codes}.float")
        self.floats |= {codes: f"{codes}.float", zero: f"{codes}.zero"}
        for name in (codes, zero):  # for readers other than products; without any, they fall away
            self.cast(self.floats[name], name, np.uint8)

    def product(self, node: OnnxNode) -> None:
        """``MatMulInteger`` and ``ConvInteger``: a product of whole numbers, as one of floats."""
        self.layer = node.layer
        values = self.centred(node, 0, 2), self.centred(node, 1, 3)
        operator = node.proto.op_type.removesuffix("Integer")
        result = self.add(operator, *values, to=f"{node.outputs[0]}.float", **node.attributes)
        self.floats[node.outputs[0]] = result
        self.cast(result, node.outputs[0], np.int32)

    def scaled_product(self, node: OnnxNode) -> None:
        """``MatMulIntegerToFloat`` of ONNX Runtime: codes, codes, both scales, both zero points, a bias."""
        self.layer = node.layer
        name = f"{node.outputs[0]}.codes"
        product = self.add("MatMul", self.centred(node, 0, 4), self.centred(node, 1, 5), to=name)
        scales = self.add("Mul", node.proto.input[2], node.proto.input[3], to=f"{name}.scale")
        self.biased(node, self.add("Mul", product, scales, to=f"{name}.scaled"), 6)

    def quantised_product(self, node: OnnxNode) -> None:
        """``DynamicQuantizeMatMul`` of ONNX Runtime: a value, a weight, its scale and zero point, a bias."""
        self.layer = node.layer
        value, name = node.proto.input[0], f"{node.outputs[0]}.codes"
        self.range(node, value, f"{name}.scale", f"{name}.zero")
        self.codes(value, f"{name}.scale", f"{name}.zero", f"{name}.float")
        codes = self.add("Sub", f"{name}.float", f"{name}.zero", to=f"{name}.centred")
        product = self.add("MatMul", codes, self.centred(node, 1, 3), to=f"{name}.product")
        scales = self.add("Mul", f"{name}.scale", node.proto.input[2], to=f"{name}.scales")
        self.biased(node, self.add("Mul", product, scales, to=f"{name}.scaled"), 4)

    def biased(self, node: OnnxNode, value: str, at: int) -> None:
        """The result of an operator, with the bias in place ``at`` where it has one."""
        operands = node.proto.input
        if len(operands) > at and operands[at]:
            self.add("Add", value, operands[at], to=node.outputs[0])
        else:
            self.add("Identity", value, to=node.outputs[0])

    def to_float(self, node: OnnxNode) -> None:
        """A cast of whole numbers that are there as floats already."""
        source = self.floats.get(node.proto.input[0])
        if source is None or node.attributes["to"] != onnx.TensorProto.FLOAT:
            self.keep(node)
        else:
            self.layer = node.layer
            self.add("Identity", source, to=node.outputs[0])

    def centred(self, node: OnnxNode, at: int, zero_at: int) -> str:
        """The operand in a place less its zero point, as floats; a weight at once."""
        operands = node.proto.input
        name, zero = operands[at], operands[zero_at] if len(operands) > zero_at else ""
        made = f"{node.outputs[0]}.{at}"
        if name in self.weights and (not zero or zero in self.weights):
            numbers = self.weights[name].astype(np.float32)
            if zero:
                point = self.weights[zero].astype(np.float32)
                rest = numbers.ndim - 1 if node.proto.op_type == "ConvInteger" and point.ndim else 0
                numbers = numbers - point.reshape([*point.shape, *[1] * rest])
            self.weights[f"{name}.float"] = numbers
            return f"{name}.float"
        codes = self.float_of(name, made)
        return self.add("Sub", codes, self.float_of(zero, f"{made}.zero"), to=f"{made}.centred") if zero else codes

    def float_of(self, name: str, made: str) -> str:
        """A value of whole numbers as floats."""
        return self.floats[name] if name in self.floats else self.cast(name, f"{made}.float", np.float32)

    def range(self, node: OnnxNode, value: str, scale: str, zero: str) -> None:
        """The scale and the zero point of a value's range, which always holds 0."""
        most, least = (
            self.add(operator, self.over_all(node, value, reduction, f"{scale}.{reduction}"), 0.0, to=f"{scale}.{name}")
            for operator, reduction, name in (("Max", "ReduceMax", "most"), ("Min", "ReduceMin", "least"))
        )
        width = self.add("Sub", most, least, to=f"{scale}.width")
        even = self.add("Equal", width, 0.0, to=f"{scale}.even")
        # Where all numbers are 0, ONNX Runtime's scale is 1.
        self.add("Where", even, 1.0, self.add("Div", width, LARGEST_CODE, to=f"{scale}.step"), to=scale)
        below = self.add("Div", self.add("Neg", least, to=f"{zero}.below"), scale, to=f"{zero}.exact")
        self.add("Round", self.add("Clip", below, 0.0, LARGEST_CODE, to=f"{zero}.inside"), to=zero)

    def over_all(self, node: OnnxNode, value: str, reduction: str, name: str) -> str:
        """The extreme of a whole value: of each token first, then of all tokens."""
        shape = self.types[value].shape
        tokens = [at for at, dim in enumerate(shape) if isinstance(dim, str)]
        if len(tokens) > 1:
            raise CompileError(
                node.place,
                f"quantises {self.types[value]}, a number for every pair of tokens, by their common range",
                FLOAT_FILE,
            )
        for axes in ([at for at in range(len(shape)) if at not in tokens], tokens):
            if axes:
                value = self.reduce(reduction, value, axes, f"{name}.{len(self.nodes)}")
        return value

    def reduce(self, reduction: str, value: str, axes: list[int], name: str) -> str:
        """Reduces along ``axes``, which stay with one entry each."""
        if self.graph.opsets[""] < AXES_ARE_OPERANDS:
            return self.add(reduction, value, to=name, axes=axes, keepdims=1)
        proto = helper.make_node(reduction, [value, "axes"], [name], keepdims=1)
        self.nodes.append(OnnxNode(proto, self.layer, constants={1: np.array(axes, np.int64)}))
        return name

    def codes(self, value: str, scale: str, zero: str, name: str) -> None:
        """The codes of a value as floats."""
        steps = self.add("Round", self.add("Div", value, scale, to=f"{name}.exact"), to=f"{name}.steps")
        self.add("Clip", self.add("Add", steps, zero, to=f"{name}.all"), 0.0, LARGEST_CODE, to=name)

    def cast(self, value: str, name: str, dtype: type[np.generic]) -> str:
        """Appends a cast."""
        proto = helper.make_node("Cast", [value], [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        self.nodes.append(OnnxNode(proto, self.layer))
        return name


_WRITERS: Mapping[str, Callable[[_Spelling, OnnxNode], None]] = {
    "DynamicQuantizeLinear": _Spelling.quantise,
    "MatMulInteger": _Spelling.product,
    "ConvInteger": _Spelling.product,
    "MatMulIntegerToFloat": _Spelling.scaled_product,
    "DynamicQuantizeMatMul": _Spelling.quantised_product,
    "Cast": _Spelling.to_float,
}

QUANTISED = frozenset(_WRITERS) - {"Cast"}
"""Operators of which something is left to write out."""
