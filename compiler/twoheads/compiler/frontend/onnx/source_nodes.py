"""An ONNX program's operators as nodes of a :class:`SourceGraph`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxNode
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.frontend.onnx.passes.resolve_lengths import SIZE_OPERANDS
from twoheads.compiler.frontend.onnx.sequence_node import sequence_from_onnx
from twoheads.compiler.ir.size_formula import SizeFormula
from twoheads.compiler.ir.source_graph import AttentionNode, Node, TokenwiseNode

__all__ = ["VIEWS", "source_nodes"]

VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def source_nodes(program: OnnxProgram, attentions: Mapping[str, AttentionNode]) -> tuple[Node, ...]:
    """Every operator in order; where one makes a recognised attention's result, the attention."""
    nodes: list[Node] = []
    for node in program.graph.nodes:
        sequence = sequence_from_onnx(node, program.types)
        for at, name in enumerate(node.outputs):
            if name in attentions:
                nodes.append(attentions[name])
            elif sequence is not None:
                nodes.append(sequence)
            else:
                nodes.append(_tokenwise_node(program, node, at))
    return tuple(nodes)


def _tokenwise_node(program: OnnxProgram, node: OnnxNode, at: int) -> TokenwiseNode:
    name = node.outputs[at]
    inputs = node.inputs
    words: list[str] = []
    for place, operand in enumerate(node.proto.input):
        if place in node.sizes:
            sizes = node.sizes[place]
            words.append(str(sizes) if isinstance(sizes, SizeFormula) else f"[{', '.join(map(str, sizes))}]")
        elif place in node.constants:
            words.append(_text(node.constants[place].tolist()))
        else:
            words.append(f"%{inputs.index(operand)}" if operand else "none")
    words += sorted(f"{name}={_text(value)}" for name, value in node.attributes.items())
    domain = f"{node.proto.domain}." if node.proto.domain else ""
    suffix = f"#{at}" if len(node.outputs) > 1 else ""
    sized = set(node.sizes) - set(SIZE_OPERANDS.get(node.proto.op_type, ()))
    type_ = program.types[name]
    first = program.types.get(inputs[0]) if inputs else None
    return TokenwiseNode(
        name=name,
        op=f"{domain}{node.proto.op_type}({', '.join(words)}){suffix}",
        inputs=inputs,
        type=type_,
        layer=node.layer,
        uses_length=bool(sized),
        is_view=node.proto.op_type in VIEWS and len(inputs) == 1 and first is not None and first.dtype == type_.dtype,
    )


def _text(value: object) -> str:
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        if array.size <= 16:
            return f"{array.dtype}{array.tolist()}"
        return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
