"""A float32 engine in another floating-point type, for compilers that compute in the types that a model has."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["cast_model"]

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def cast_model(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with all arithmetic in ``fp16`` or ``bf16``; its ports stay float32.

    Its constants must be within the type's range. Casts stand behind inputs and before outputs, so that whoever calls
    the engine need not know.
    """
    kind = TYPES[precision]
    cast = onnx.ModelProto()
    cast.CopyFrom(model)
    graph = cast.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_tensor(tensor, kind))
    for node in graph.node:
        _retype(node, kind)
    inputs = [port.name for port in graph.input if port.type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [port.name for port in graph.output if port.type.tensor_type.elem_type == TensorProto.FLOAT]
    names = {name: f"{name}.{precision}" for name in (*inputs, *outputs)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    before = [_cast(name, names[name], kind) for name in inputs]
    after = [_cast(names[name], name, TensorProto.FLOAT) for name in outputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return cast


def _tensor(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name)


def _retype(node: onnx.NodeProto, kind: int) -> None:
    """Changes what a node says of its type by itself: a cast's aim, a constant's value."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_tensor(attribute.t, kind))


def _cast(given: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [result], name=f"cast_{result}", to=kind)
