"""An ONNX program as the recogniser of attention sees it: :class:`twoheads.compiler.ir.op_view.OpView`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.frontend.onnx.passes.measure import content_values
from twoheads.compiler.ir.op_view import Kind, OpNode
from twoheads.compiler.ir.size_formula import SizeFormula
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.compiler.ir.source_program import all_lengths, example_inputs
from twoheads.compiler.recognition.classify_mask import HIDDEN

__all__ = ["OnnxView"]

KINDS: Mapping[str, Kind] = {
    "MatMul": Kind.MATMUL,
    "FusedMatMul": Kind.MATMUL,
    "Add": Kind.ADD,
    "Sub": Kind.SUB,
    "Mul": Kind.MUL,
    "Div": Kind.DIV,
    "Neg": Kind.NEG,
    "Tanh": Kind.TANH,
    "Where": Kind.WHERE,
    "IsNaN": Kind.ISNAN,
    "Slice": Kind.SLICE,
    **dict.fromkeys(
        ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Tile", "Identity", "Flatten"), Kind.MOVE
    ),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape"), Kind.SHAPE),
}
"""Kinds of the operators whose kind does not depend on their attributes."""

LONGER_THAN_ANY = 1 << 24
"""Tokens that no input has: a number as large says nothing of positions."""


@dataclass(frozen=True)
class OnnxView:
    """A program's operators by kind, and their values.

    Attributes:
        name: The model's name.
        program: The operators.
        outputs: Names of the model's results.
    """

    name: str
    program: OnnxProgram
    outputs: tuple[str, ...]

    @property
    def nodes(self) -> Mapping[str, OpNode]:
        """Every operator by the name of each of its results."""
        return self._nodes

    @cached_property
    def _nodes(self) -> Mapping[str, OpNode]:
        return {
            name: OpNode(name, self._kind(node), self._operands(node), node.proto.op_type, node.layer)
            for node in self.program.graph.nodes
            for name in node.outputs
        }

    @cached_property
    def _content(self) -> set[str]:
        arguments = [entry.value.name for entry in self.program.inputs if entry.source == "argument"]
        return content_values(self.program.graph, arguments)

    def type(self, name: str) -> TensorType | None:
        """Type of a value, weight or input."""
        return self.program.types.get(name)

    def depends_on_content(self, name: str) -> bool:
        """Whether its numbers depend on an argument."""
        return name in self._content

    def constants(self, name: str) -> frozenset[int]:
        """Magnitudes of the whole numbers in its computation."""
        graph = self.program.graph
        found: set[int] = set()
        for node in graph.needed((name,)):
            found |= {
                abs(attribute.i) for attribute in node.proto.attribute if attribute.type == onnx.AttributeProto.INT
            }
            arrays = [*node.constants.values(), *(graph.weights[n] for n in node.inputs if n in graph.weights)]
            for array in arrays:
                if array.size <= 16 and array.dtype.kind in "if":
                    found |= {abs(int(x)) for x in array.reshape(-1).tolist() if _may_be_a_distance(x)}
            for sizes in node.sizes.values():
                found |= {abs(size.add) for size in ((sizes,) if isinstance(sizes, SizeFormula) else sizes)}
        return frozenset(number for number in found if number < LONGER_THAN_ANY)

    def evaluate(
        self, names: Iterable[str], lengths: Mapping[str, int], given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Values at ``lengths``; see the protocol."""
        every = all_lengths(self.program.inputs, lengths)
        inputs = example_inputs(self.program.inputs, every, 0)
        return self.program.graph.run(names, {**inputs, **(given or {})}, every)

    def _operands(self, node: OnnxNode) -> tuple[str | float, ...]:
        """Names of values; a constant number as such, other operands that the node holds are left out."""
        operands: list[str | float] = []
        for at, name in enumerate(node.proto.input):
            if at in node.constants and node.constants[at].ndim == 0:
                operands.append(float(node.constants[at]))
            elif name and at not in node.constants and at not in node.sizes:
                operands.append(name)
        return tuple(operands)

    def _kind(self, node: OnnxNode) -> Kind:
        operator, attributes = node.proto.op_type, node.attributes
        rank = self._rank(node.proto.input[0]) if node.proto.input else 0
        if operator == "Softmax":
            return Kind.SOFTMAX if attributes.get("axis", -1) in (-1, rank - 1) else Kind.OTHER
        if operator == "Concat":
            return Kind.CONCAT if attributes["axis"] in (-1, rank - 1) else Kind.OTHER
        if operator == "Cast":
            floats = [
                self.program.types[name].dtype.startswith(("float", "bfloat"))
                for name in (*node.inputs, *node.outputs)
                if name in self.program.types
            ]
            return Kind.CAST if all(floats) else Kind.OTHER
        if operator == "Gemm":
            return Kind.MATMUL if len(node.proto.input) == 2 else Kind.OTHER
        if operator == "Einsum":
            return Kind.MATMUL if len(node.inputs) == 2 else Kind.OTHER
        if operator == "Max":
            return Kind.LARGER if len(node.proto.input) == 2 else Kind.OTHER
        if operator == "ReduceMax":
            axes = node.constants[1].tolist() if 1 in node.constants else attributes.get("axes", [])
            return Kind.MAX if list(axes) in ([-1], [rank - 1]) and attributes.get("keepdims", 1) else Kind.OTHER
        return KINDS.get(operator, Kind.OTHER)

    def _rank(self, name: str) -> int:
        type_ = self.program.types.get(name)
        return 0 if type_ is None else len(type_.shape)


def _may_be_a_distance(number: float) -> bool:
    """Whether a number may be one of positions: it is whole, and no float that hides keys where it is added."""
    hides = isinstance(number, float) and number <= HIDDEN
    return bool(np.isfinite(number)) and number == int(number) and not hides
