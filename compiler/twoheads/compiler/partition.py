"""Cuts a source graph at its attention nodes into token-wise regions, and finds the regions that are equal.

The *level* of a node is the number of attentions upstream of it. What lies on one level is one region; what depends on
the last hidden states alone is the *head*. Values that depend on weights only (Gemma's ``1 + w``) are recomputed in
every region that uses them, so no region has to wait for another to prepare its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from twoheads.compiler.source_graph import AttentionNode, SourceGraph, TensorType, TokenwiseNode
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program import TOKENS, Dim

__all__ = ["Partition", "Region", "partition"]


HEAD = 1 << 30
"""The home of what depends on the last hidden states alone."""

CONSTANT = -1
"""The home of what depends on weights only."""

_VIEWS = (
    "alias",
    "unsqueeze",
    "squeeze",
    "expand",
    "view",
    "reshape",
    "transpose",
    "permute",
    "contiguous",
    "to",
    "dropout",
)
"""Operators that move no information: a region that reads such a result recomputes it from what is behind it, so that
one stored array (a RoPE table) serves every layer instead of one copy a layer."""


@dataclass(frozen=True, slots=True)
class Region:
    """A token-wise region.

    Attributes:
        nodes: Its nodes in topological order, constants included.
        inputs: Token values from inputs, attentions and other regions, in order of first use.
        weights: Weights in order of first use.
        outputs: Token values that others need, in order.
        fingerprint: Equal for two regions exactly if one engine serves both.
    """

    nodes: tuple[TokenwiseNode, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Partition:
    """The model as alternating steps: ``body`` in execution order, then the ``head`` region or ``None``."""

    body: tuple[Region | AttentionNode, ...]
    head: Region | None


def partition(graph: SourceGraph) -> Partition:
    """Partitions ``graph``.

    Raises:
        CompileError: A region's value is not one row a token, or attention follows the last hidden states.
    """
    homes = _homes(graph)
    members, outputs = _assign(graph, homes)
    types = graph.types()
    regions = {home: _region(graph, members[home], outputs, homes, home, types) for home in members}
    attentions: dict[int, list[AttentionNode]] = {}
    for node in graph.attentions:
        if homes[node.name] == HEAD:
            raise CompileError(
                node.layer, "is attention after the model's last hidden states", "compile the base model"
            )
        attentions.setdefault(homes[node.name] - 1, []).append(node)
    body: list[Region | AttentionNode] = []
    head = regions.pop(HEAD, None)
    for level in range(max([*regions, *attentions]) + 1):
        body.extend([regions[level]] if level in regions else [])
        body.extend(attentions.get(level, ()))
    return Partition(tuple(body), head)


def _homes(graph: SourceGraph) -> dict[str, int]:
    """The region every value belongs to: its level, HEAD, or CONSTANT for what depends on weights only."""
    homes = dict.fromkeys(graph.weights, CONSTANT) | {entry.value.name: 0 for entry in graph.inputs}
    for node in graph.nodes:
        upstream = max((homes[name] for name in node.inputs), default=CONSTANT)
        if graph.hidden in node.inputs or any(homes[name] == HEAD for name in node.inputs):
            homes[node.name] = HEAD
        elif isinstance(node, AttentionNode):
            homes[node.name] = max(upstream, 0) + 1
        elif upstream == CONSTANT and node.type is not None and TOKENS in node.type.shape:
            homes[node.name] = 0  # a constant spread over all tokens
        else:
            homes[node.name] = upstream
    return homes


def _assign(graph: SourceGraph, homes: Mapping[str, int]) -> tuple[dict[int, set[str]], frozenset[str]]:
    """Which nodes each region computes, and which results leave their region, found from what is asked for.

    A region recomputes the constants it uses, and views of other regions' results.
    """
    nodes = {node.name: node for node in graph.nodes if isinstance(node, TokenwiseNode)}
    types = graph.types()
    asked = [graph.hidden, *([graph.logits] if graph.logits else [])]
    asked += [name for node in graph.attentions for name in node.inputs]
    members: dict[int, set[str]] = {}
    outputs: set[str] = set()
    while asked:
        result = asked.pop()
        if result in outputs or result not in nodes:
            continue
        outputs.add(result)
        home = homes[result]
        region = members.setdefault(home, set())
        stack = [result]
        while stack:
            name = stack.pop()
            if name in region or name not in nodes:
                continue
            if homes[name] in (home, CONSTANT) or (name != graph.hidden and _is_view(nodes[name], types)):
                region.add(name)
                stack.extend(nodes[name].inputs)
            else:
                asked.append(name)
    return members, frozenset(outputs)


def _is_view(node: TokenwiseNode, types: Mapping[str, TensorType]) -> bool:
    operator = node.op.split("(")[0].split(".")
    if len(node.inputs) != 1 or node.type is None or len(operator) < 2 or operator[1] not in _VIEWS:
        return False
    source = types.get(node.inputs[0])
    return source is not None and source.dtype == node.type.dtype


def _region(
    graph: SourceGraph,
    members: set[str],
    results: frozenset[str],
    homes: Mapping[str, int],
    home: int,
    types: Mapping[str, TensorType],
) -> Region:
    nodes = tuple(node for node in graph.nodes if isinstance(node, TokenwiseNode) and node.name in members)
    used = dict.fromkeys(name for node in nodes for name in node.inputs if name not in members)
    inputs = tuple(name for name in used if name not in graph.weights)
    weights = tuple(name for name in used if name in graph.weights)
    outputs = tuple(node.name for node in nodes if node.name in results and homes[node.name] == home)
    for node in nodes:
        if node.uses_length:
            raise CompileError(
                f'{node.layer or "model"} (node "{node.name}")',
                f"computes with the number of tokens, {node.op}: a block of a longer input does not know it",
                "compute from positions, or from constants of the model",
            )
        if homes[node.name] != CONSTANT and node.type is not None:
            _require_token_type(node.type.shape, node.name, node.layer)
    return Region(nodes, inputs, weights, outputs, _fingerprint(nodes, inputs, weights, outputs, types))


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


def _require_token_type(shape: tuple[Dim, ...], name: str, layer: str) -> None:
    """Checks that a value has exactly one axis over tokens and no size computed from the length.

    Raises:
        CompileError: Names the node and its layer.
    """
    symbolic = [dim for dim in shape if isinstance(dim, str)]
    if symbolic == [TOKENS]:
        return
    where = f'{layer or "model"} (node "{name}")'
    if symbolic.count(TOKENS) == 2:
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
