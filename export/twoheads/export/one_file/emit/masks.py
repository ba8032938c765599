"""Masks as operators: which key tiles a block of queries needs, which of them without a mask, and the mask of a tile.

The three questions that :class:`~twoheads.graphs.masks.expressions.Mask` answers with numbers are answered here inside
of the file, for a block and for tiles that are known only when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.export.one_file.emit.graph import Graph
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import And, Causal, Chunk, Full, Mask, Or, Sinks, Window

__all__ = ["Rows", "covered", "support", "visible"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Queries and key tiles as values of a graph: int64 numbers, and vectors of a number for every tile.

    Attributes:
        first, last: The block's first and last query.
        starts, ends: Where each key tile begins, and where the next one does, ``[tiles]``.
    """

    first: str
    last: str
    starts: str
    ends: str


def support(graph: Graph, mask: Mask, rows: Rows) -> str | None:
    """For every tile whether some query may see a key of it, ``[tiles]``; ``None``: of every tile."""
    match mask:
        case Full():
            return None
        case Causal():
            return _at_most(graph, rows.starts, rows.last)
        case Window(left, right):
            low = _shifted(graph, rows.first, -left) if left >= 0 else None
            high = _shifted(graph, rows.last, right) if right >= 0 else None
            return _all(
                graph,
                None if low is None else graph.op("Greater", rows.ends, low),
                None if high is None else _at_most(graph, rows.starts, high),
            )
        case Sinks(size):
            return graph.op("Less", rows.starts, graph.int64(size))
        case Chunk(size):
            low = _floor(graph, rows.first, size)
            high = _shifted(graph, _floor(graph, rows.last, size), size - 1)
            return _all(graph, graph.op("Greater", rows.ends, low), _at_most(graph, rows.starts, high))
        case And(terms):
            return _all(graph, *(support(graph, term, rows) for term in terms))
        case Or(terms):
            return _any(graph, *(support(graph, term, rows) for term in terms))
        case _:
            raise InternalError(f"the mask {mask} has no form in one file")


def covered(graph: Graph, mask: Mask, rows: Rows) -> str | None:
    """For every tile whether all queries see all of it, ``[tiles]``; ``None``: of every tile."""
    match mask:
        case Full():
            return None
        case Causal():
            return _at_most(graph, rows.ends, _shifted(graph, rows.first, 1))
        case Window(left, right):
            low = _shifted(graph, rows.last, -left) if left >= 0 else None
            high = _shifted(graph, rows.first, right + 1) if right >= 0 else None
            return _all(
                graph,
                None if low is None else _at_most(graph, low, rows.starts),
                None if high is None else _at_most(graph, rows.ends, high),
            )
        case Sinks(size):
            return _at_most(graph, rows.ends, graph.int64(size))
        case Chunk(size):
            low, last = (_floor(graph, at, size) for at in (rows.first, rows.last))
            inside = _all(
                graph, _at_most(graph, low, rows.starts), _at_most(graph, rows.ends, _shifted(graph, low, size))
            )
            return _all(graph, inside, graph.op("Equal", low, last))
        case And(terms):
            return _all(graph, *(covered(graph, term, rows) for term in terms))
        case Or(terms):
            return _any(graph, *(covered(graph, term, rows) for term in terms))
        case _:
            raise InternalError(f"the mask {mask} has no form in one file")


def visible(graph: Graph, mask: Mask, i: str, j: str) -> str | None:
    """Whether queries ``i [M, 1]`` see keys ``j [1, K]``, a truth value for every pair; ``None``: all do."""
    match mask:
        case Full():
            return None
        case Causal():
            return _at_most(graph, j, i)
        case Window(left, right):
            distance = graph.op("Sub", j, i)
            low = None if left < 0 else _at_most(graph, graph.int64(-left), distance)
            high = None if right < 0 else _at_most(graph, distance, graph.int64(right))
            return _all(graph, low, high)
        case Sinks(size):
            return graph.op("Less", j, graph.int64(size))
        case Chunk(size):
            return graph.op("Equal", *(graph.op("Div", at, graph.int64(size)) for at in (i, j)))
        case And(terms):
            return _all(graph, *(visible(graph, term, i, j) for term in terms))
        case Or(terms):
            return _any(graph, *(visible(graph, term, i, j) for term in terms))
        case _:
            raise InternalError(f"the mask {mask} has no form in one file")


def _at_most(graph: Graph, left: str, right: str) -> str:
    return graph.op("LessOrEqual", left, right)


def _shifted(graph: Graph, number: str, by: int) -> str:
    return graph.op("Add", number, graph.int64(by))


def _floor(graph: Graph, number: str, size: int) -> str:
    """The largest multiple of ``size`` that is not above a number, which is not negative."""
    return graph.op("Mul", graph.op("Div", number, graph.int64(size)), graph.int64(size))


def _all(graph: Graph, *terms: str | None) -> str | None:
    """All of the terms, of which ``None`` is true everywhere."""
    result: str | None = None
    for term in terms:
        if term is not None:
            result = term if result is None else graph.op("And", result, term)
    return result


def _any(graph: Graph, *terms: str | None) -> str | None:
    """One of the terms at least; ``None`` where that is so everywhere."""
    result = ""
    for term in terms:
        if term is None:
            return None
        result = term if not result else graph.op("Or", result, term)
    return result
