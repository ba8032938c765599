"""Scans whose state is one number, or a few, for every channel: convolutions, maxima, diagonal and selective scans.

A diagonal state has no product of queries and keys. The tokens of all chunks that stand at one place of their chunk are
one array, so that a block takes as many steps as a chunk has places, each for all chunks. Then the chunks are joined by
their last states, one after the other. The sums of decays that this takes are products with a triangle of ones.
A maximum is the same with sums in the place of products, and maxima in the place of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twoheads.export.emit.scans.scan_graph import LOWEST, ScanGraph
from twoheads.graphs.program.engines.scan_operators import NOTHING

__all__ = ["causal_conv", "diagonal_scan", "max_scan", "selective_scan"]


def causal_conv(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state: a product for each row of the kernel."""
    kernel, rows = graph.sizes["kernel"], graph.rows
    halo = graph.node("Concat", "state", "x", axis=1)
    y = ""
    for at, column in enumerate(graph.parts(graph.turned("weight", 2), 0, kernel)):
        product = graph.node("Mul", graph.part(halo, 1, at, at + rows), column)
        y = graph.node("Add", y, product) if y else product
    if graph.count:
        last = graph.node("Add", graph.array("last", np.arange(kernel - 1, dtype=np.int64)), graph.count)
        state = graph.node("Gather", halo, last, axis=1)
    else:
        state = graph.part(halo, 1, rows, rows + kernel - 1)
    return graph.node("Add", y, "bias") if graph.sizes["bias"] else y, state


def diagonal_scan(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state."""
    width = graph.sizes["width"]
    logs = _by_place(graph, graph.node("Max", "decay", graph.constant(LOWEST)), width)
    sums = graph.node("MatMul", graph.upto(graph.chunk), graph.reshape(logs, graph.chunk, -1))
    shape = (graph.chunk, graph.chunks, width)
    exps = [graph.node("Exp", graph.reshape(each, *shape)) for each in (logs, sums)]
    factors, kept = (graph.parts(each, 0, graph.chunk) for each in exps)
    added = graph.parts(_by_place(graph, "x", width), 0, graph.chunk)
    _, rows, state = _states(graph, factors, kept, added, graph.reshape("state", 1, 1, width))
    return _by_token(graph, rows, width), state


def max_scan(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state."""
    width = graph.sizes["width"]
    logs = _by_place(graph, graph.node("Max", "decay", graph.constant(NOTHING)), width)
    sums = graph.node("MatMul", graph.upto(graph.chunk), graph.reshape(logs, graph.chunk, -1))
    kept = graph.reshape(sums, graph.chunk, graph.chunks, width)
    decays, kept_at, added = (graph.parts(each, 0, graph.chunk) for each in (logs, kept, _by_place(graph, "x", width)))

    def larger(before: str, decay: str, new: str) -> str:
        return graph.node("Max", graph.node("Add", before, decay), new)

    before, rows, state = _states(graph, decays, kept_at, added, graph.reshape("state", 1, 1, width), larger)
    both = [_by_token(graph, each, width) for each in ([before, *rows[:-1]], rows)]
    return graph.node("Concat", *both, axis=2), state


def selective_scan(graph: ScanGraph) -> tuple[str, str]:
    """``y`` and the next state.

    Decays are ``dt a``: their sums are those of ``dt``, times ``a``.
    """
    width, states = graph.sizes["width"], graph.sizes["states"]
    dt = _by_place(graph, "dt", width)
    sums = graph.node("MatMul", graph.upto(graph.chunk), graph.reshape(dt, graph.chunk, -1))
    inputs = _by_place(graph, graph.node("Mul", "dt", "x"), width)

    def columns(value: str) -> list[str]:
        return graph.parts(graph.reshape(value, graph.chunk, graph.chunks, width, 1), 0, graph.chunk)

    def rows(port: str, *last: int) -> list[str]:
        placed = _by_place(graph, port, states)
        return graph.parts(graph.reshape(placed, graph.chunk, graph.chunks, *last), 0, graph.chunk)

    def decays(value: str) -> list[str]:
        lowest = graph.constant(LOWEST)
        return [graph.node("Exp", graph.node("Max", graph.node("Mul", each, "a"), lowest)) for each in columns(value)]

    added = [graph.node("Mul", *pair) for pair in zip(columns(inputs), rows("b", 1, states), strict=True)]
    first = graph.reshape("state", 1, 1, width, states)
    _, places, state = _states(graph, decays(dt), decays(sums), added, first)
    read = [graph.node("MatMul", *pair) for pair in zip(places, rows("c", states, 1), strict=True)]
    return _by_token(graph, read, width), state


def _by_place(graph: ScanGraph, value: str, width: int) -> str:
    """``value [1, n, width]`` as ``[chunk, chunks, width]``."""
    return graph.node("Transpose", graph.reshape(value, graph.chunks, graph.chunk, width), perm=[1, 0, 2])


def _by_token(graph: ScanGraph, places: Sequence[str], width: int) -> str:
    """The opposite, of an array for every place."""
    together = graph.reshape(graph.joined(places, 0), graph.chunk, graph.chunks, width)
    return graph.node("Transpose", together, perm=[1, 0, 2])


def _states(
    graph: ScanGraph,
    factors: Sequence[str],
    kept: Sequence[str],
    added: Sequence[str],
    state: str,
    step: Callable[[str, str, str], str] | None = None,
) -> tuple[str, list[str], str]:
    """The states before the first place, ``[1, chunks, ...]``, those at every place, and the last one.

    Args:
        graph: Where the operators go.
        factors: For every place, what a token leaves of the state before it, ``[1, chunks, ...]``.
        kept: What is left there of the state at the chunk's beginning.
        added: What a token adds.
        state: That at the block's beginning, ``[1, 1, ...]``.
        step: Makes a state of the one before, of what is left of it and of what is added; products and sums by default.
    """
    after = step or (lambda before, factor, new: graph.node("Add", graph.node("Mul", before, factor), new))
    inside = [added[0]]
    for factor, new in zip(factors[1:], added[1:], strict=True):
        inside.append(after(inside[-1], factor, new))
    begins = [state]
    ends = zip(*(graph.parts(value, 1, graph.chunks) for value in (kept[-1], inside[-1])), strict=True)
    for factor, new in ends:
        begins.append(after(begins[-1], factor, new))
    before = graph.joined(begins[:-1], 1)
    return before, [after(before, f, new) for f, new in zip(kept, inside, strict=True)], begins[-1]
