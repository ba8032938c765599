"""How many operators a file comes to, counted before any of its functions is written out."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from twoheads.graphs.errors import CompileError

__all__ = ["MOST_NODES", "check_node_count"]

MOST_NODES = 50_000
"""The largest transformers have a quarter of it. Each operator is run a few times, so that this many take minutes."""

EXPORT = "export the model itself; one with so many operators is cut into parts first"


def check_node_count(model: onnx.ModelProto, where: str) -> None:
    """Refuses what would not end: functions that come to too many operators, or that call themselves.

    Raises:
        CompileError: Names the number.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        """Operators of ``nodes``, whose functions are counted already."""
        return sum(counts.get((node.domain, node.op_type), 1) + count(_inner(node)) for node in nodes)

    waiting = list(functions)
    open_: set[tuple[str, str]] = set()
    while waiting:
        key = waiting[-1]
        called = {(node.domain, node.op_type) for node in _all(functions[key].node)} & functions.keys()
        if key in counts or not called - counts.keys():
            counts[key] = min(count(functions[key].node), MOST_NODES + 1)
            open_.discard(key)
            waiting.pop()
        elif key in open_:
            raise CompileError(where, f"has the function {key[1]!r:.100}, which calls itself", EXPORT)
        else:
            open_.add(key)
            waiting.extend(sorted(called - counts.keys()))
    total = count(model.graph.node)
    if total > MOST_NODES:
        problem = f"comes to more than {MOST_NODES} operators" + (", its functions written out" if functions else "")
        raise CompileError(where, problem, EXPORT)


def _inner(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The operators of the graphs that a branch or loop holds."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return [inner for graph in graphs for inner in graph.node]


def _all(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [found for node in nodes for found in (node, *_all(_inner(node)))]
