"""Models made of parts of an engine's graph, and engines that show all their intermediate values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import helper

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.port import Port

__all__ = ["cut_nodes", "graph_ports", "mark_all", "node_name", "value_types"]


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or that of its first output."""
    return node.name or node.output[0]


def value_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The type of every input, every output and every value between them, by name; weights are not among them.

    Raises:
        InternalError: Shape inference does not reach a value, or not with numbers.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise InternalError(f"engine {model.graph.name}: shapes can't be inferred: {error}") from error
    types = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    for name in _computed(graph.node):
        shape = types[name].type.tensor_type.shape if name in types else None
        if shape is None or not all(dim.HasField("dim_value") for dim in shape.dim):
            raise InternalError(f"engine {graph.name}: the shape of {name} can't be inferred")
    return types


def mark_all(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every value that a node computes among its outputs, in the order of the nodes."""
    types = value_types(model)
    return _with_outputs(model, [types[name] for name in _computed(model.graph.node)])


def cut_nodes(model: onnx.ModelProto, kept: Sequence[int], types: Mapping[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
    """The model of some nodes: what they read from others are its inputs, what nobody among them reads its outputs.

    Args:
        model: Of fixed shapes.
        kept: Indices of the nodes, ascending.
        types: Of its values, from :func:`value_types`.
    """
    graph = model.graph
    nodes = [graph.node[index] for index in kept]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made = _computed(nodes)
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    wanted = {value.name for value in graph.output}
    part = helper.make_graph(
        nodes,
        graph.name,
        [types[name] for name in read if name not in weights and name not in made],
        [types[name] for name in made if name in wanted or name not in read],
        [weights[name] for name in read if name in weights],
    )
    return _same_versions(model, part)


def graph_ports(model: onnx.ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The model's inputs and outputs; it has fixed shapes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    return tuple(map(_port, inputs)), tuple(map(_port, model.graph.output))


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return Port(value.name, dtype, tuple(dim.dim_value for dim in tensor.shape.dim))


def _computed(nodes: Iterable[onnx.NodeProto]) -> dict[str, None]:
    """What nodes compute, in their order."""
    return dict.fromkeys(name for node in nodes for name in node.output if name)


def _with_outputs(model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.output[:]
    graph.output.extend(outputs)
    return _same_versions(model, graph)


def _same_versions(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version, functions=list(model.functions)
    )
