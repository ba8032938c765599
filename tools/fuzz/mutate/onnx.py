"""Mutations of ONNX files by their format: operators, attributes, shapes, constants, external data, functions."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tools.fuzz.mutate.plain import mutated_bytes

__all__ = ["mutated_onnx"]

OPERATORS = (
    "Add", "Sub", "Mul", "Div", "MatMul", "Softmax", "Identity", "Transpose", "Reshape", "Concat", "Gather", "Where",
    "Loop", "If", "Scan", "RandomNormal", "ConstantOfShape", "Expand", "Tile", "Range", "Shape", "Cast", "Attention",
    "LSTM", "Nope", "", "a\0b", "é" * 50,
)  # fmt: skip
KINDS = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.GRAPH, AttributeProto.TENSOR)
SIZES = (0, -1, 1, 2, 3, 2**31, 2**62, -(2**63), 10**9)
LOCATIONS = ("../outside/weights.bin", "/etc/passwd", "", "a\0b", "weights.bin", ".", "model.onnx", "x" * 5000)
PLACES = ("-64", "abc", "", "9" * 30, "1", "64", "18446744073709551616", "0x10", "\uff11")


def mutated_onnx(data: bytes, draw: Random) -> bytes:
    """``data`` with one or two of its parts changed; sometimes its bytes instead."""
    if draw.random() < 0.15:
        return mutated_bytes(data, draw)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return mutated_bytes(data, draw)
    for _ in range(draw.choice((1, 1, 1, 2))):
        draw.choice(_CHANGES)(model, draw)
    return bytes(model.SerializeToString())


def _node(model: onnx.ModelProto, draw: Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    at = draw.randrange(len(nodes))
    match draw.randrange(7):
        case 0 | 1:
            nodes[at].op_type = draw.choice(OPERATORS)
        case 2:
            nodes[at].domain = draw.choice(("com.microsoft", "ai.onnx.ml", "evil", "", "ai.onnx"))
        case 3:
            del nodes[at]
        case 4:
            nodes.append(nodes[at])
        case 5:
            nodes.insert(draw.randrange(len(nodes)), nodes[at])
        case _:
            nodes[at].name = draw.choice(("", "a\0b", "x" * 10_000, nodes[draw.randrange(len(nodes))].name))


def _operands(model: onnx.ModelProto, draw: Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    node = draw.choice(nodes)
    names = [name for other in nodes for name in (*other.input, *other.output)] or ["x"]
    side = draw.choice((node.input, node.output))
    if side and draw.random() < 0.7:
        side[draw.randrange(len(side))] = draw.choice((*names, "", "nope"))
    elif side and draw.random() < 0.5:
        del side[draw.randrange(len(side))]
    else:
        side.append(draw.choice(names))


def _attribute(model: onnx.ModelProto, draw: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    attributes: Any = draw.choice(nodes).attribute
    at = draw.randrange(len(attributes))
    found = attributes[at]
    match draw.randrange(6):
        case 0:
            del attributes[at]
        case 1:
            found.name = draw.choice(("axis", "to", "value", "perm", "", "nope"))
        case 2:
            found.type = draw.choice(KINDS)
        case 3:
            attributes.append(found)
        case _ if found.type == AttributeProto.INT:
            found.i = draw.choice((*SIZES, found.i + 1, -found.i))
        case _ if found.type == AttributeProto.INTS and found.ints:
            found.ints[draw.randrange(len(found.ints))] = draw.choice(SIZES)
        case _ if found.type == AttributeProto.FLOAT:
            found.f = draw.choice((0.0, -1.0, float("nan"), float("inf"), 2 * found.f))
        case _ if found.type == AttributeProto.TENSOR:
            _change_tensor(found.t, draw)
        case _:
            attributes[at].CopyFrom(helper.make_attribute("x", "text"))


def _constant(model: onnx.ModelProto, draw: Random) -> None:
    tensors = model.graph.initializer
    if not tensors:
        return
    at = draw.randrange(len(tensors))
    match draw.randrange(6):
        case 0:
            del tensors[at]
        case 1:
            tensors.append(tensors[draw.randrange(len(tensors))])
        case 2:
            tensors[at].name = draw.choice(("", "nope", tensors[draw.randrange(len(tensors))].name))
        case _:
            _change_tensor(tensors[at], draw)


def _change_tensor(tensor: TensorProto, draw: Random) -> None:
    match draw.randrange(6):
        case 0 if tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(SIZES)
        case 1:
            tensor.data_type = draw.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 23, 99))
        case 2 if tensor.raw_data:
            raw = tensor.raw_data
            tensor.raw_data = draw.choice((b"", raw[:-1], raw * 2, mutated_bytes(raw, draw)))
        case 3 if tensor.external_data:
            entry = draw.choice(tensor.external_data)
            entry.value = draw.choice(LOCATIONS if entry.key == "location" else PLACES)
        case 4:
            tensor.data_location = TensorProto.EXTERNAL
            if not tensor.external_data:
                tensor.external_data.add(key="location", value=draw.choice(LOCATIONS))
        case _:
            tensor.dims.append(draw.choice((1, 2, 10**9)))


def _port(model: onnx.ModelProto, draw: Random) -> None:
    ports: Any = draw.choice((model.graph.input, model.graph.output))
    if not ports:
        return
    port = draw.choice(ports)
    kind = port.type.tensor_type
    match draw.randrange(6):
        case 0:
            port.name = draw.choice(("", "nope", model.graph.input[0].name))
        case 1:
            kind.elem_type = draw.choice((0, 1, 7, 8, 10, 14, 99))
        case 2 if kind.shape.dim:
            draw.choice(kind.shape.dim).dim_value = draw.choice(SIZES)
        case 3 if kind.shape.dim:
            draw.choice(kind.shape.dim).dim_param = draw.choice(("n", "b", "", "a\0b"))
        case 4:
            port.ClearField("type")
        case _:
            ports.append(port)


def _whole(model: onnx.ModelProto, draw: Random) -> None:
    match draw.randrange(6):
        case 0:
            model.opset_import[0].version = draw.choice((0, -1, 7, 12, 13, 18, 23, 99, 2**40))
        case 1:
            model.ir_version = draw.choice((0, 1, 3, 4, 99, 2**40))
        case 2:
            model.opset_import.append(helper.make_opsetid(draw.choice(("", "evil", "com.microsoft")), 1))
        case 3:
            del model.graph.output[:]
        case 4:
            body = [helper.make_node("f0", ["x"], ["y"], domain="bomb")] * draw.choice((1, 2, 40))
            model.functions.append(helper.make_function("bomb", "f0", ["x"], ["y"], body, model.opset_import))
        case _:
            model.graph.doc_string = "x" * draw.choice((1, 100_000))


def _large(model: onnx.ModelProto, draw: Random) -> None:
    """A node that makes a large array of a small constant, read by another node."""
    shape = numpy_helper.from_array(np.array([draw.choice((10**5, 10**9, 2**62))], np.int64), "large.shape")
    one = numpy_helper.from_array(np.ones(1, np.float32), "large.one")
    ends = numpy_helper.from_array(np.array(draw.choice((10**5, 10**9)), np.int64), "large.end")
    zero, step = (numpy_helper.from_array(np.array(at, np.int64), f"large.{at}") for at in (0, 1))
    made = draw.choice(
        (
            helper.make_node("ConstantOfShape", ["large.shape"], ["large"]),
            helper.make_node("Expand", ["large.one", "large.shape"], ["large"]),
            helper.make_node("Tile", ["large.one", "large.shape"], ["large"]),
            helper.make_node("Range", ["large.0", "large.end", "large.1"], ["large"]),
        )
    )
    model.graph.initializer.extend((shape, one, ends, zero, step))
    read = next((node for node in model.graph.node if node.op_type in ("Add", "Mul", "MatMul") and node.input), None)
    if read is not None and draw.random() < 0.7:
        summed = helper.make_node("ReduceSum", ["large"], ["large.sum"], keepdims=1)
        cast = helper.make_node("Cast", ["large.sum"], ["large.float"], to=TensorProto.FLOAT)
        again = helper.make_node("Add", [read.input[0], "large.float"], ["large.read"])
        read.input[0] = "large.read"
        nodes = [made, summed, cast, again]
    else:
        nodes = [made]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


_CHANGES = (_node, _node, _operands, _attribute, _attribute, _constant, _constant, _port, _whole, _large)
