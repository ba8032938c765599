"""Cuts off the part of an engine that half precision would garble: what follows from whole numbers alone.

In float16 a position times a frequency is a whole radian off from position 1,024 on, so sines of positions are noise;
token numbers beyond 2,048 are not even numbers that it has. The host computes this part in float32, a table look-up and
a sine a row, and the accelerator takes embedded rows and the sines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

__all__ = ["Parts", "split_host_part"]

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


@dataclass(frozen=True, slots=True)
class Parts:
    """An engine in two parts that, one after the other, compute what it does.

    Attributes:
        host: Takes the inputs of whole numbers; ``None`` if there are none.
        accelerator: Takes the other inputs and what the host's part gives; ``None`` if the host computes everything.
    """

    host: onnx.ModelProto | None
    accelerator: onnx.ModelProto | None


def split_host_part(model: onnx.ModelProto) -> Parts:
    """The two parts of ``model``; values keep their names, and constants go with the part that reads them.

    The host's are the nodes that whole numbers reach, up to and including the look-ups in tables of floating-point
    numbers: rows of a table are what an engine computes with.
    """
    graph = model.graph
    index = {port.name for port in graph.input if port.type.tensor_type.elem_type not in FLOATS}
    if not index:
        return Parts(None, model)
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    host: list[onnx.NodeProto] = []
    for node in graph.node:
        read = [name for name in node.input if name and name not in constants]
        if not read or not index.issuperset(read):
            continue
        host.append(node)
        table = node.op_type == "Gather" and constants.get(node.input[0]) in FLOATS
        index.update(() if table else node.output)
    computed = {name for node in host for name in node.output}
    rest = [node for node in graph.node if not computed.issuperset(node.output)]
    results = [port.name for port in graph.output]
    cut = _read(rest) & computed
    given = [name for node in host for name in node.output if name in cut or name in results]
    types = _types(model)
    return Parts(
        _part(model, host, [p.name for p in graph.input if p.name in _read(host)], given, types),
        _part(
            model,
            rest,
            [*(p.name for p in graph.input if p.name in _read(rest)), *(name for name in given if name in cut)],
            [name for name in results if name not in computed],
            types,
        )
        if rest
        else None,
    )


def _read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def _part(
    model: onnx.ModelProto,
    nodes: Collection[onnx.NodeProto],
    inputs: Iterable[str],
    outputs: Iterable[str],
    types: dict[str, onnx.ValueInfoProto],
) -> onnx.ModelProto:
    read = _read(nodes)
    graph = helper.make_graph(
        list(nodes),
        model.graph.name,
        [types[name] for name in inputs],
        [types[name] for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    part = helper.make_model(graph, producer_name=model.producer_name, opset_imports=list(model.opset_import))
    part.ir_version = model.ir_version
    return part
