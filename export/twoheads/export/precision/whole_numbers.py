"""Which values of an engine follow from whole numbers alone: angles and sines of positions, comparisons, counts."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto

__all__ = ["from_whole_numbers"]

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


def from_whole_numbers(model: onnx.ModelProto, weights: Collection[str], given: Collection[str]) -> frozenset[str]:
    """The values that are computed from ``given`` inputs, whole-number inputs, weights and constants, and nothing else.

    Rows that a number looks up in a table of floating-point numbers are not among them: those are what a model computes
    with. What weights alone give is not, either.

    Args:
        model: An engine whose weights are graph inputs.
        weights: Their names.
        given: Inputs of floating-point numbers that count as whole numbers.
    """
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
    constants = {*weights, *(tensor.name for tensor in graph.initializer)}
    inputs = [value for value in graph.input if value.name not in constants]
    found = {v.name for v in inputs if v.type.tensor_type.elem_type not in FLOATS or v.name in given}
    for node in graph.node:
        read = {name for name in node.input if name} - constants
        if not read:
            constants.update(node.output)
        elif read <= found:
            row = node.op_type == "Gather" and node.input[0] in constants and types.get(node.output[0]) in FLOATS
            found.update(() if row else node.output)
    return frozenset(found)
