"""Merged decoders: a file that holds the model with and without a past behind one ``If`` becomes the one without.

Exporters write both into the branches of an ``If`` whose condition is an input (``use_cache_branch``). A block program
keeps keys and values itself, so the branch without a past is the model. An ``If`` whose condition is a constant has one
branch only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

__all__ = ["renamed", "take_branches"]

SWITCH = "branch"
"""What the name of an input says that switches to a past."""


def take_branches(graph: onnx.GraphProto) -> None:
    """Rewrites ``graph`` in place; an ``If`` whose condition is computed stays, and is refused later."""
    switches = {value.name for value in graph.input if SWITCH in value.name.lower()}
    while any(_taken(node, graph, switches) is not None for node in graph.node):
        nodes = [made for node in graph.node for made in _without_branch(node, graph, switches)]
        del graph.node[:]
        graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name not in switches or value.name in read]
    del graph.input[:]
    graph.input.extend(kept)


def _without_branch(node: onnx.NodeProto, graph: onnx.GraphProto, switches: set[str]) -> Iterator[onnx.NodeProto]:
    branch = _taken(node, graph, switches)
    if branch is None:
        yield node
        return
    prefix = f"{node.name or node.output[0]}/"
    names = {name: prefix + name for name in _own(branch)}
    for tensor in branch.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
    yield from (renamed(inner, names) for inner in branch.node)
    for result, value in zip(node.output, branch.output, strict=True):
        yield helper.make_node("Identity", [names.get(value.name, value.name)], [result])


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy whose values have their new names, in its own branches too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        new = [names.get(name, name) for name in values]
        del values[:]
        values.extend(new)
    for attribute in copy.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            outer = {name: new for name, new in names.items() if name not in _own(attribute.g)}
            inner = [renamed(each, outer) for each in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
            for value in attribute.g.output:
                value.name = outer.get(value.name, value.name)
    return copy


def _own(branch: onnx.GraphProto) -> set[str]:
    """Names of the values that a branch defines itself."""
    made = {name for node in branch.node for name in node.output if name}
    return made | {tensor.name for tensor in branch.initializer}


def _taken(node: onnx.NodeProto, graph: onnx.GraphProto, switches: set[str]) -> onnx.GraphProto | None:
    """The branch of an ``If`` that a run without a past takes; ``None`` where that is not known."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return None
    known = False if node.input[0] in switches else _constant(node.input[0], graph.initializer, graph.node)
    if known is None:
        return None
    wanted = "then_branch" if known else "else_branch"
    return next((attribute.g for attribute in node.attribute if attribute.name == wanted), None)


def _constant(name: str, weights: Sequence[onnx.TensorProto], nodes: Sequence[onnx.NodeProto]) -> bool | None:
    """A condition that the file holds."""
    tensors = [tensor for tensor in weights if tensor.name == name]
    made = [node for node in nodes if node.op_type == "Constant" and node.output[0] == name]
    tensors += [attribute.t for node in made for attribute in node.attribute if attribute.name == "value"]
    return (
        bool(numpy_helper.to_array(tensors[0]).all())
        if tensors and tensors[0].data_type == onnx.TensorProto.BOOL
        else None
    )
