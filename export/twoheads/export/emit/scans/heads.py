"""Decayed attention and the gated delta rule: a state ``[Dk, Dv]`` for every head, in chunks of matrix products.

Within a chunk every pair of tokens has a decay, which is the exponential of a sum of logarithms. The sums are products
with a triangle of ones: each adds up its own terms, so that no difference of large prefix sums loses digits, nothing
underflows before it is multiplied, and nothing overflows. Between chunks only states pass, one after the other.

Arrays are ``[heads, chunks, chunk, width]``.
"""

from __future__ import annotations

from twoheads.export.emit.scans.channel_decays import channel_scores
from twoheads.export.emit.scans.inverse import inverse
from twoheads.export.emit.scans.scan_graph import ScanGraph

__all__ = ["decayed_attention", "gated_delta_rule"]


class _Heads:
    """What both operators do with the ports of one block.

    Attributes:
        since: The decay of the state at the chunk's beginning up to each of its tokens, ``[..., chunk, 1]``, or
            ``[..., chunk, Dk]`` where channels decay for themselves.
        until: The decay of each token up to the chunk's end, likewise.
        values: The port ``v``.
    """

    def __init__(self, graph: ScanGraph, width: int) -> None:
        self.graph = graph
        self.heads, self.groups = graph.sizes["heads"], graph.sizes["groups"]
        self.key_dim, self.value_dim = graph.sizes["key_dim"], graph.sizes["value_dim"]
        self.shape = (self.heads, graph.chunks, graph.chunk)
        self.logs = graph.decays(*self.shape, width)
        self.since = graph.exp_sums(graph.upto(graph.chunk), self.logs)
        self.until = graph.exp_sums(graph.after(graph.chunk), self.logs)
        self.values = graph.reshape("v", *self.shape, self.value_dim)

    def scaled(self, port: str, factor: str, width: int = 1) -> str:
        """Queries or keys of every head, times ``factor [heads, chunks, chunk, width]``; a group's heads share them."""
        graph, shared = self.graph, self.heads // self.groups
        if shared == 1:
            return graph.node("Mul", graph.reshape(port, *self.shape, self.key_dim), factor)
        by_group = graph.reshape(port, self.groups, 1, graph.rows, self.key_dim)
        factors = graph.reshape(factor, self.groups, shared, graph.rows, width)
        return graph.reshape(graph.node("Mul", by_group, factors), *self.shape, self.key_dim)

    def plain(self, port: str) -> str:
        """Queries or keys of every head."""
        graph, shared = self.graph, self.heads // self.groups
        if shared > 1:
            sizes = graph.constant([self.groups, shared, graph.rows, self.key_dim])
            port = graph.node("Expand", graph.reshape(port, self.groups, 1, graph.rows, self.key_dim), sizes)
        return graph.reshape(port, *self.shape, self.key_dim)

    def scores(self, rows: str, triangle: str) -> str:
        """``rows k^T`` with the decay of every pair of ``triangle``, 0 for the others."""
        graph, shared = self.graph, self.heads // self.groups
        shape = (self.groups, graph.chunks, graph.chunk, self.key_dim)
        products = graph.node("MatMul", graph.reshape(rows, *shape), graph.turned(graph.reshape("k", *shape)))
        terms = graph.node("Mul", self.logs, graph.before(graph.chunk))
        decays = graph.node("Mul", graph.exp_sums(graph.upto(graph.chunk), terms), triangle)
        if shared == 1:
            return graph.node("Mul", products, decays)
        pairs = graph.rows * graph.chunk
        decays = graph.reshape(decays, self.groups, shared, pairs)
        weighted = graph.node("Mul", graph.reshape(products, self.groups, 1, pairs), decays)
        return graph.reshape(weighted, *self.shape, graph.chunk)

    def kept(self, width: int) -> list[str]:
        """What is left of a chunk's first state at its end, for every chunk."""
        graph = self.graph
        last = graph.part(self.since, 2, graph.chunk - 1, graph.chunk)
        return graph.parts(graph.reshape(last, self.heads, graph.chunks, width, 1), 1, graph.chunks)

    def first_state(self) -> str:
        """The port ``state``."""
        return self.graph.reshape("state", self.heads, 1, self.key_dim, self.value_dim)


def decayed_attention(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state."""
    heads = _Heads(graph, 1)
    inside = graph.node("MatMul", heads.scores("q", graph.upto(graph.chunk)), heads.values)
    written = graph.node("MatMul", graph.turned(heads.scaled("k", heads.until)), heads.values)
    states = [heads.first_state()]
    for factor, added in zip(heads.kept(1), graph.parts(written, 1, graph.chunks), strict=True):
        states.append(graph.node("Add", graph.node("Mul", states[-1], factor), added))
    read = graph.node("MatMul", heads.scaled("q", heads.since), graph.joined(states[:-1], 1))
    return graph.node("Add", inside, read), states[-1]


def gated_delta_rule(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state.

    With the state ``S`` at the chunk's beginning, token ``t`` writes ``k_t u_t^T``, where all ``u`` together are
    ``(I + B)^-1 diag(beta) (V - (since K) S)``: ``B`` is what later keys read of earlier ones, times ``beta``.
    """
    width = graph.sizes["key_dim"] if graph.sizes["by_channel"] else 1
    heads = _Heads(graph, width)
    beta = graph.reshape("beta", *heads.shape, 1)
    if width > 1:
        seen, overlaps = channel_scores(graph, [heads.plain("q"), heads.plain("k")], heads.plain("k"), heads.logs)
        overlaps = graph.node("Mul", overlaps, graph.before(graph.chunk))
    else:
        seen = heads.scores("q", graph.upto(graph.chunk))
        overlaps = heads.scores("k", graph.before(graph.chunk))
    solve = inverse(graph, graph.node("Mul", overlaps, beta), graph.chunk, heads.heads * graph.chunks)
    solve = graph.node("Mul", graph.reshape(solve, *heads.shape, graph.chunk), graph.turned(beta))
    wanted = graph.node("MatMul", solve, heads.values)
    reading = graph.node("MatMul", solve, heads.scaled("k", heads.since, width))
    writing = graph.turned(heads.scaled("k", heads.until, width))
    states, updates = [heads.first_state()], list[str]()
    of_chunks = (graph.parts(value, 1, graph.chunks) for value in (wanted, reading, writing))
    for factor, new, reads, writes in zip(heads.kept(width), *of_chunks, strict=True):
        updates.append(graph.node("Sub", new, graph.node("MatMul", reads, states[-1])))
        kept = graph.node("Mul", states[-1], factor)
        states.append(graph.node("Add", kept, graph.node("MatMul", writes, updates[-1])))
    inside = graph.node("MatMul", seen, graph.joined(updates, 1))
    read = graph.node("MatMul", heads.scaled("q", heads.since, width), graph.joined(states[:-1], 1))
    return graph.node("Add", inside, read), states[-1]
