"""Imposes an attention policy on a captured graph: an approximation that the user asked for by name."""

from __future__ import annotations

from dataclasses import replace

from twoheads.compiler.source_graph import AttentionNode, Node, SourceGraph
from twoheads.graphs.policy import Policy, restrict

__all__ = ["apply_policy"]


def apply_policy(graph: SourceGraph, policy: Policy) -> SourceGraph:
    """The graph with every attention's mask restricted to the policy's window and sinks (Theorem 5.1).

    Returns ``graph`` itself where that changes nothing: the policy is ``full``, or every layer is narrower already.
    """
    nodes: list[Node] = []
    changed = False
    for node in graph.nodes:
        if isinstance(node, AttentionNode):
            mask = restrict(node.mask, policy)
            if mask != node.mask:
                changed = True
                nodes.append(replace(node, mask=mask))
                continue
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)) if changed else graph
