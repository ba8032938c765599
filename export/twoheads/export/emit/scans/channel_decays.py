"""Products of queries and keys whose channels decay for themselves.

Their decays are no factor behind the product, and a factor on each side from a common point grows without bound on one
of them. But of two neighbouring runs of tokens, later queries meet earlier keys by way of their border: both sides
decay up to it, by factors of 1 at most. So the products of a chunk are made of runs of 1, 2, 4, ... tokens, one product
of matrices for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twoheads.export.emit.scans.scan_graph import ScanGraph

__all__ = ["channel_scores"]


def channel_scores(graph: ScanGraph, rows: Sequence[str], keys: str, logs: str) -> list[str]:
    """For each of ``rows``, its products with the keys of its chunk up to its own token, decayed; 0 for later ones.

    Args:
        graph: Where the operators go.
        rows: Arrays ``[heads, chunks, chunk, Dk]``.
        keys: Likewise.
        logs: The logarithms of the decays, likewise.

    Returns:
        ``[heads, chunks, chunk, chunk]`` each.
    """
    heads, width = graph.sizes["heads"], graph.sizes["key_dim"]
    found = [_diagonal(graph, each, keys) for each in rows]
    size = 1
    while size < graph.chunk:
        pairs = heads * graph.rows // (2 * size)
        halves = (pairs, 2, size, width)
        earlier = graph.part(graph.reshape(keys, *halves), 1, 0, 1)
        past, future = (graph.part(graph.reshape(logs, *halves), 1, at, at + 1) for at in (0, 1))
        since = graph.exp_sums(graph.upto(size), future)
        columns = graph.turned(graph.node("Mul", earlier, graph.exp_sums(graph.after(size), past)))
        for at, each in enumerate(rows):
            later = graph.node("Mul", graph.part(graph.reshape(each, *halves), 1, 1, 2), since)
            found[at] = _grown(graph, found[at], graph.node("MatMul", later, columns), pairs, size)
        size *= 2
    return [graph.reshape(each, heads, graph.chunks, graph.chunk, graph.chunk) for each in found]


def _diagonal(graph: ScanGraph, rows: str, keys: str) -> str:
    """What each token's row has with its own key."""
    return graph.node("ReduceSum", graph.node("Mul", rows, keys), graph.constant([3]), keepdims=1)


def _grown(graph: ScanGraph, blocks: str, corner: str, pairs: int, size: int) -> str:
    """``[pairs, 2 size, 2 size]`` of the two blocks of each pair and the corner below the first."""
    first, second = (graph.part(graph.reshape(blocks, pairs, 2, size, size), 1, at, at + 1) for at in (0, 1))
    zeros = graph.node("Expand", _zero(graph), graph.constant([pairs, 1, size, size]))
    upper = graph.node("Concat", first, zeros, axis=3)
    return graph.node("Concat", upper, graph.node("Concat", corner, second, axis=3), axis=2)


def _zero(graph: ScanGraph) -> str:
    return "zero" if "zero" in graph.constants else graph.array("zero", np.zeros((1, 1, 1, 1), np.float32))
