"""Computes what depends on weights alone, and removes what computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx

from twoheads.compiler.frontend.onnx.model.graph import EMBEDDED, OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.read_file import Array

__all__ = ["fold_onnx", "graph_of", "without_dead_nodes"]


def graph_of(
    opsets: Mapping[str, int], nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], outputs: Iterable[str]
) -> OnnxGraph:
    """A graph of a file's nodes without identities, whose unused optional results have no names."""
    kept = _without_identities(list(nodes), set(outputs))
    used = {name for node in kept for name in node.input} | set(outputs)
    for node in kept:
        optional = _optional_results(node, opsets)
        names = [_result(node, at, used, optional) for at in range(len(node.output))]
        del node.output[:]
        node.output.extend(names)
    graph = OnnxGraph(opsets, tuple(OnnxNode(node, _layer(node)) for node in kept), dict(weights))
    return without_dead_nodes(graph, outputs)


def _result(node: onnx.NodeProto, at: int, used: set[str], optional: set[int]) -> str:
    """A result's name: none where nobody asks and the operator may leave it out.

    A part of several (Split) may have none in a file, and ONNX Runtime without its optimiser crashes then.
    """
    name = node.output[at]
    if at in optional and at:
        return name if name in used else ""
    return name or f"{node.output[0]}.unnamed_{at}"


def _optional_results(node: onnx.NodeProto, opsets: Mapping[str, int]) -> set[int]:
    """Places of results that an operator may leave out; all but the first where its definition is not known."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (KeyError, onnx.defs.SchemaError):
        return set(range(1, len(node.output)))
    kinds = [result.option for result in schema.outputs]
    return {at for at, kind in enumerate(kinds) if kind == onnx.defs.OpSchema.FormalParameterOption.Optional}


def fold_onnx(graph: OnnxGraph, outputs: Iterable[str]) -> OnnxGraph:
    """The graph with everything that depends on weights alone as weights.

    A large matrix that is transposed is left as it is: products read it transposed, and tied weights stay one array.
    """
    constant = set(graph.weights)
    folded: list[OnnxNode] = []
    for node in graph.nodes:
        if all(name in constant for name in node.inputs):
            constant.update(node.outputs)
            folded.append(node)
    members = {node.outputs[0] for node in folded}
    rest = [node for node in graph.nodes if node.outputs[0] not in members]
    asked = {name for node in rest for name in node.inputs} | set(outputs)
    transposed = [node for node in folded if asked.issuperset(node.outputs) and _is_transposed_weight(node, graph)]
    stay = {node.outputs[0] for node in transposed}
    results = [name for node in folded for name in node.outputs if name in asked and name not in stay]
    if not folded:
        return graph
    weights = {**graph.weights, **graph.run(results, {}, {})}
    kept = tuple(node for node in graph.nodes if node.outputs[0] not in members or node.outputs[0] in stay)
    return without_dead_nodes(replace(graph, nodes=kept, weights=weights), outputs)


def without_dead_nodes(graph: OnnxGraph, outputs: Iterable[str]) -> OnnxGraph:
    """Only what ``outputs`` need, weights included; concatenations lose parts that hold nothing."""
    wanted = tuple(outputs)
    whole = tuple(_without_empty_parts(node, graph.weights) for node in graph.nodes)
    if any(new is not old for new, old in zip(whole, graph.nodes, strict=True)):
        graph = replace(graph, nodes=whole)
    nodes = graph.needed(wanted)
    used = {name for node in nodes for name in node.inputs} | set(wanted)
    weights = {name: array for name, array in graph.weights.items() if name in used}
    same = len(nodes) == len(graph.nodes) and len(weights) == len(graph.weights)
    return graph if same else replace(graph, nodes=nodes, weights=weights)


def _without_empty_parts(node: OnnxNode, weights: Mapping[str, Array]) -> OnnxNode:
    """A concatenation without operands that hold nothing, such as an empty past."""
    parts = [name for name in node.proto.input if name not in weights or weights[name].size]
    if node.proto.op_type != "Concat" or len(parts) == len(node.proto.input) or not parts:
        return node
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(parts)
    if len(parts) == 1:
        proto.op_type = "Identity"
        del proto.attribute[:]
    return replace(node, proto=proto)


def _is_transposed_weight(node: OnnxNode, graph: OnnxGraph) -> bool:
    source = graph.weights.get(node.inputs[0]) if node.proto.op_type == "Transpose" else None
    return source is not None and source.ndim == 2 and source.size > EMBEDDED


def _without_identities(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Identities and dropouts fall away; those that name a result of the model stay.

    So do dropouts of a file that was exported in training mode: ONNX Runtime removes most of them as well, and a run
    is no training.
    """
    alias: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        names = [alias.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(names)
        if node.op_type == "Dropout":  # its mask has no reader
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = names[0]
        else:
            kept.append(node)
    return kept


def _layer(node: onnx.NodeProto) -> str:
    """The module's path, as the exporters write it into metadata (dynamo) or the node's name (TorchScript)."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
    if scopes:
        paths = re.findall(r"'([^']*)'", scopes)
        return paths[-2] if len(paths) > 1 else ""
    if "/" in node.name:
        return ".".join(part for part in node.name.split("/")[:-1] if part)
    return ""
