"""Rows of heads, ``[1, heads * n, width]``, become rows of tokens: ``[1, n, heads, width]``.

Norms of queries and keys by head (Qwen 3) are written as norms of so many shorter rows: the heads are folded into the
token axis and unfolded again. What lies between works on the last dimension only, so it is the same with one more
dimension before it. That it is, is seen by running both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.measure import LENGTHS
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["split_heads"]

MERGED = re.compile(r"([0-9]+)\*([a-z][a-z0-9]*)")
"""A dimension of so many rows a token."""


def split_heads(
    graph: OnnxGraph, types: Mapping[str, TensorType], inputs: Sequence[Input], outputs: Sequence[str]
) -> OnnxGraph:
    """The graph with heads beside the token axis; the same graph where none are folded into it, or others than heads.

    Args:
        graph: What to rewrite.
        types: Of its values.
        inputs: What a run supplies.
        outputs: What the graph is for.
    """
    weights = dict(graph.weights)
    nodes = tuple(_split(node, types, weights) for node in graph.nodes)
    if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
        return graph
    made = replace(graph, nodes=nodes, weights=weights)
    return made if _is_same(graph, made, inputs, outputs) else graph


def _split(node: OnnxNode, types: Mapping[str, TensorType], weights: dict[str, np.ndarray]) -> OnnxNode:
    """A reshape that folds heads into the tokens, with a dimension for each."""
    if node.proto.op_type != "Reshape" or node.outputs[0] not in types or node.proto.input[0] not in types:
        return node
    before, after = types[node.proto.input[0]].shape, types[node.outputs[0]].shape
    found = [(at, match) for at, dim in enumerate(after) if (match := MERGED.fullmatch(str(dim))) is not None]
    if len(found) != 1 or sum(isinstance(dim, str) for dim in after) != 1:
        return node
    (at, match), axis = found[0], found[0][1][2]
    if axis not in before:
        return node
    ahead = prod(int(dim) for dim in before[: before.index(axis)]) // prod(int(dim) for dim in after[:at])
    if ahead not in (1, int(match[1])):
        return node
    own = (-1, int(match[1])) if ahead == 1 else (int(match[1]), -1)
    shape = f"{node.outputs[0]}.by_head"
    weights[shape] = np.array([*(int(dim) for dim in after[:at]), *own, *(int(d) for d in after[at + 1 :])], np.int64)
    return node.renamed({node.proto.input[1]: shape}, {})


def _is_same(one: OnnxGraph, other: OnnxGraph, inputs: Sequence[Input], outputs: Sequence[str]) -> bool:
    lengths = dict(zip(input_lengths(inputs, 0), LENGTHS[0], strict=False))
    feeds = example_inputs(inputs, lengths, 5)
    want = one.run(outputs, feeds, lengths)
    try:
        got = other.run(outputs, feeds, lengths)
    except CompileError:  # an operator between needs the folded form
        return False
    return all(np.array_equal(want[name], got[name]) for name in outputs)
