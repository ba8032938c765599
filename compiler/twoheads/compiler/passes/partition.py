"""Cuts a source graph where tokens meet, at attentions, scans and sequence operators, into token-wise regions.

The *level* of a node is the number of cuts upstream of it. What lies on one level and one token axis is one region;
row values (without an axis) of a level are another, which runs once. What per-token logits need of the last hidden
states alone is the *head*. Values that depend on weights only (Gemma's ``1 + w``) are recomputed in every region that
uses them, so no region has to wait for another to prepare its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from twoheads.compiler.ir.source_graph import AttentionNode, Cut, Node, SourceGraph, TensorType, TokenwiseNode, place_of
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.axes import parse_axis
from twoheads.graphs.program.program import Dim

__all__ = ["Partition", "Region", "partition"]


@dataclass(frozen=True, slots=True, order=True)
class _Home:
    """The region that a value belongs to: ``(level, axis)``; row values, without an axis, come first on their level."""

    level: int
    axis: str


_ROWS = ""
"""The axis of a home of row values."""

_HEAD = _Home(1 << 30, "head")
"""The home of what per-token logits need of the last hidden states."""

_CONSTANT = _Home(-1, _ROWS)
"""The home of what depends on weights only."""


@dataclass(frozen=True, slots=True)
class Region:
    """A token-wise region.

    Attributes:
        nodes: Its nodes in topological order, constants included.
        inputs: Values from inputs, attentions and other regions, in order of first use.
        weights: Weights in order of first use.
        outputs: Values that others need, in order.
        axis: The token axis of its values; ``None`` where it computes row values, once.
        fingerprint: Equal for two regions exactly if one engine serves both.
    """

    nodes: tuple[TokenwiseNode, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Partition:
    """The model as steps: ``body`` in execution order, then the ``head`` region or ``None``."""

    body: tuple[Region | Cut, ...]
    head: Region | None


def partition(graph: SourceGraph) -> Partition:
    """Partitions ``graph``.

    Raises:
        CompileError: The last hidden states or a region's value are not one row a token, or rows move between the last
            hidden states and per-token logits.
    """
    types = graph.types()
    _require_rows(graph, types[graph.hidden].shape)
    head = _head_nodes(graph, types)
    homes = _homes(graph, types, head)
    members, outputs = _assign(graph, homes, types)
    regions = {home: _region(graph, members[home], outputs, homes, home, types) for home in members}
    cuts: dict[int, list[Cut]] = {}
    for node in graph.nodes:
        if not isinstance(node, TokenwiseNode) and node.name in outputs:
            cuts.setdefault(homes[node.name].level, []).append(node)
    body: list[Region | Cut] = []
    last = regions.pop(_HEAD, None)
    if last is not None and (others := [name for name in last.inputs if name != graph.hidden]):
        raise CompileError(
            f"the head of {graph.name}", f"reads {others[0]} beside the last hidden states", "compile the base model"
        )
    for level in range(max([home.level for home in regions] + list(cuts), default=-1) + 1):
        body.extend(cuts.get(level, ()))
        body.extend(regions[home] for home in sorted(regions) if home.level == level)
    return Partition(tuple(body), last)


def _require_rows(graph: SourceGraph, shape: tuple[Dim, ...]) -> None:
    if len(shape) != 3 or not isinstance(shape[1], str):
        raise CompileError(
            graph.name,
            f"returns [{', '.join(map(str, shape))}] where the last hidden states are expected: not one row a token",
            "compile a module that returns (hidden, logits), or the base model",
        )


def _head_nodes(graph: SourceGraph, types: Mapping[str, TensorType]) -> frozenset[str]:
    """What lies between the last hidden states and per-token logits; empty where the logits are one row.

    Raises:
        CompileError: Rows move there, so that logits of single positions can't be computed on their own.
    """
    if graph.logits is None or graph.logits == graph.hidden or types[graph.logits].axis is None:
        return frozenset()
    downstream = {graph.hidden}
    for node in graph.nodes:
        if downstream.isdisjoint(node.inputs):
            continue
        downstream.add(node.name)
        if not isinstance(node, TokenwiseNode) and types[node.name].axis is not None:
            what = "attention" if isinstance(node, AttentionNode) else node.operator
            raise CompileError(
                place_of(node.layer, node.name),
                f"is {what} after the model's last hidden states",
                "compile the base model",
            )
    return frozenset(downstream - {graph.hidden})


def _homes(graph: SourceGraph, types: Mapping[str, TensorType], head: frozenset[str]) -> dict[str, _Home]:
    homes = dict.fromkeys(graph.weights, _CONSTANT)
    homes |= {entry.value.name: _Home(0, entry.value.axis or _ROWS) for entry in graph.inputs}
    for node in graph.nodes:
        upstream = [homes[name] for name in node.inputs]
        level = max((home.level for home in upstream), default=-1)
        axis = _axis(node, types, upstream)
        if node.name in head:
            homes[node.name] = _HEAD
        elif not isinstance(node, TokenwiseNode):
            homes[node.name] = _Home(max(level, 0) + 1, axis)
        elif level == _CONSTANT.level and axis == _ROWS:
            homes[node.name] = _CONSTANT
        else:  # a constant that is spread over all tokens is on level 0
            homes[node.name] = _Home(max(level, 0), axis)
    return homes


def _axis(node: Node, types: Mapping[str, TensorType], upstream: list[_Home]) -> str:
    """The token axis of a result; that of its operands where it is no single tensor."""
    if node.name in types:
        return types[node.name].axis or _ROWS
    return next((home.axis for home in upstream if home.axis), _ROWS)


def _assign(
    graph: SourceGraph, homes: Mapping[str, _Home], types: Mapping[str, TensorType]
) -> tuple[dict[_Home, set[str]], frozenset[str]]:
    """Which nodes each region computes, and which results leave their region, found from what is asked for.

    A region recomputes the constants it uses, and views of other regions' results.
    """
    nodes = {node.name: node for node in graph.nodes if isinstance(node, TokenwiseNode)}
    cuts = {node.name: node for node in graph.nodes if not isinstance(node, TokenwiseNode)}
    asked = [graph.hidden, *([graph.logits] if graph.logits else [])]
    members: dict[_Home, set[str]] = {}
    outputs: set[str] = set()
    while asked:
        result = asked.pop()
        if result in outputs:
            continue
        if result in cuts:
            outputs.add(result)
            asked.extend(cuts[result].inputs)
            for name in cuts[result].inputs:
                if name in graph.weights:
                    raise InternalError(f"{result} reads the weight {name}, which is no value of the run")
        if result not in nodes:
            continue
        outputs.add(result)
        home = homes[result] if homes[result] != _CONSTANT else _Home(0, _ROWS)
        region = members.setdefault(home, set())
        stack = [result]
        while stack:
            name = stack.pop()
            if name in region:
                continue
            if name in cuts:
                asked.append(name)
            elif name in nodes and (homes[name] in (home, _CONSTANT) or _recomputed(graph, nodes[name], types)):
                region.add(name)
                stack.extend(nodes[name].inputs)
            elif name in nodes:
                asked.append(name)
    return members, frozenset(outputs)


def _recomputed(graph: SourceGraph, node: TokenwiseNode, types: Mapping[str, TensorType]) -> bool:
    """Whether a region reads what is behind a view instead: then one stored RoPE table serves every layer."""
    if node.name == graph.hidden or not node.is_view or len(node.inputs) != 1 or node.type is None:
        return False
    source = types.get(node.inputs[0])
    return source is not None and source.dtype == node.type.dtype and source.axis == node.type.axis is not None


def _region(
    graph: SourceGraph,
    members: set[str],
    results: frozenset[str],
    homes: Mapping[str, _Home],
    home: _Home,
    types: Mapping[str, TensorType],
) -> Region:
    nodes = tuple(node for node in graph.nodes if isinstance(node, TokenwiseNode) and node.name in members)
    used = dict.fromkeys(name for node in nodes for name in node.inputs if name not in members)
    inputs = tuple(name for name in used if name not in graph.weights)
    weights = tuple(name for name in used if name in graph.weights)
    here = (home, _CONSTANT) if home == _Home(0, _ROWS) else (home,)
    outputs = tuple(node.name for node in nodes if node.name in results and homes[node.name] in here)
    axis = types[graph.hidden].axis if home == _HEAD else home.axis or None
    for node in nodes:
        if node.uses_length:
            raise CompileError(
                place_of(node.layer, node.name),
                f"computes with the number of tokens, {node.op}: a block of a longer input does not know it",
                "compute from positions, or from constants of the model",
            )
        if homes[node.name] != _CONSTANT and node.type is not None:
            _require_token_type(node.type.shape, axis, node.name, node.layer)
        for name in node.inputs:
            other = types[name].axis if name in types else None
            if other not in (None, axis):
                raise CompileError(
                    place_of(node.layer, node.name),
                    f"combines tokens along {other} with tokens along {axis or 'none'} by {node.op.split('(')[0]}",
                    "move rows by slices, concatenations and attention only",
                )
    return Region(nodes, inputs, weights, outputs, axis, _fingerprint(nodes, inputs, weights, outputs, types))


def _fingerprint(
    nodes: tuple[TokenwiseNode, ...],
    inputs: tuple[str, ...],
    weights: tuple[str, ...],
    outputs: tuple[str, ...],
    types: Mapping[str, TensorType],
) -> str:
    """A hash of the region's text with every name replaced by its place."""
    places = {name: f"i{at}" for at, name in enumerate(inputs)}
    places |= {name: f"w{at}" for at, name in enumerate(weights)}
    lines = [f"{places[name]} {types[name]}" for name in (*inputs, *weights)]
    for at, node in enumerate(nodes):
        places[node.name] = f"v{at}"
        lines.append(f"v{at} {node.op} {[places[name] for name in node.inputs]} {node.type}")
    lines.append(f"out {[places[name] for name in outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _require_token_type(shape: tuple[Dim, ...], axis: str | None, name: str, layer: str) -> None:
    """Checks that a value has exactly its region's axis, once, and no size computed from a length in another way.

    Raises:
        CompileError: Names the node and its layer.
    """
    symbolic = [dim for dim in shape if isinstance(dim, str)]
    if symbolic == ([] if axis is None else [axis]) and all(map(_is_axis, symbolic)):
        return
    where = place_of(layer, name)
    if len(symbolic) > 1 and all(map(_is_axis, symbolic)):
        raise CompileError(
            where,
            f"computes [{', '.join(map(str, shape))}], a value for every pair of tokens: attention not captured",
            "use torch's scaled_dot_product_attention or twoheads.compiler.attention there",
        )
    raise CompileError(
        where,
        f"has the shape [{', '.join(map(str, shape))}]: not one row a token, so no block of tokens can compute it",
        "keep one axis over all tokens from input to output",
    )


def _is_axis(dim: str) -> bool:
    try:
        parse_axis(dim)
    except ValueError:
        return False
    return True
