"""Imposes an attention policy on a captured graph: an approximation that the user asked for by name."""

from __future__ import annotations

from dataclasses import replace

from twoheads.compiler.ir.source_graph import AttentionNode, SourceGraph
from twoheads.graphs.masks.policy import Policy
from twoheads.graphs.variants.impose_policy import restricted_attention

__all__ = ["apply_policy"]


def apply_policy(graph: SourceGraph, policy: Policy) -> SourceGraph:
    """The graph with every attention's mask restricted (Theorem 5.1) or its keys sampled (Theorem 4.1).

    Returns ``graph`` itself where that changes nothing: the policy is ``full``, or every layer is narrower already.
    A sampling policy leaves layers with a window of their own as they are, and every policy leaves cross attention: it
    speaks of distances within one sequence.

    Raises:
        CompileError: Keys are to be sampled in a layer with a bias.
    """
    types = graph.types()
    nodes = tuple(
        _apply(node, policy)
        if isinstance(node, AttentionNode) and types[node.query].axis == types[node.key].axis
        else node
        for node in graph.nodes
    )
    return (
        graph if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)) else replace(graph, nodes=nodes)
    )


def _apply(node: AttentionNode, policy: Policy) -> AttentionNode:
    biased = node.bias_table is not None or node.bias_slope is not None
    mask, average = restricted_attention(node.mask, policy, biased=biased, where=node.layer or node.name)
    return node if mask is node.mask and average is None else replace(node, mask=mask, average=average)
