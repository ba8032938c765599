"""For one attention: the lists of key tiles of a query block, and what is added to the scores of a tile."""

from __future__ import annotations

import numpy as np

from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.masks import Rows, covered, support, visible
from twoheads.graphs.masks.expressions import Full
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, RelativeBias

__all__ = ["TileMasks"]


class TileMasks:
    """What the body of the loop over query blocks asks of the stage's mask and bias.

    Args:
        graph: The file's own graph.
        stage: Whose mask and bias; the bias's weights are initializers by name.
        engine: Its sizes.
        rows: Keys without padding, a number of ``graph``.
        tiles: How many key tiles there are.
        cross: Whether the keys are on another axis: every query sees all of them.
        first: The position of the first query, a number of ``graph``; 0 if not given.
    """

    def __init__(
        self,
        graph: Graph,
        stage: AttentionStage,
        engine: AttentionEngine,
        rows: str,
        tiles: str,
        *,
        cross: bool,
        first: str | None = None,
    ) -> None:
        self._mask = Full() if cross else stage.mask
        self._bias = stage.bias
        self._engine = engine
        self._rows = rows
        self._first = first
        numbers = graph.op("Range", graph.int64(0), tiles, graph.int64(1))
        self._starts = graph.op("Mul", numbers, graph.int64(engine.key_tile))
        self._ends = graph.op("Add", self._starts, graph.int64(engine.key_tile))

    def lists(self, graph: Graph, block: str) -> tuple[str, str]:
        """Numbers of the tiles that all queries of ``block`` see as a whole, and of those that need a mask.

        A tile with padding is never full. With a bias every tile needs a mask.
        """
        size = self._engine.block_size
        first = self._moved(graph, graph.op("Mul", block, graph.int64(size)))
        rows = Rows(first, graph.op("Add", first, graph.int64(size - 1)), self._starts, self._ends)
        touched = support(graph, self._mask, rows)
        begun = graph.op("Less", self._starts, self._rows)
        touched = begun if touched is None else graph.op("And", touched, begun)
        if self._bias is not None:
            return _numbers(graph, graph.op("And", touched, graph.op("Not", touched))), _numbers(graph, touched)
        full = graph.op("LessOrEqual", self._ends, self._rows)
        seen = covered(graph, self._mask, rows)
        full = full if seen is None else graph.op("And", full, seen)
        return _numbers(graph, full), _numbers(graph, graph.op("And", touched, graph.op("Not", full)))

    def apply(self, graph: Graph, block: str, tile: str, key: str, value: str) -> tuple[str, str, str]:
        """The mask ``[mask_heads, M, K]`` of a tile, and its keys and values with zeros for padding.

        Whatever a model makes of padding, infinite or no number at all, is multiplied by the weight 0 otherwise.
        """
        engine = self._engine
        i = self._moved(graph, self._places(graph, block, engine.block_size, (engine.block_size, 1)))
        j = self._places(graph, tile, engine.key_tile, (1, engine.key_tile))
        real = graph.op("Less", j, self._rows)
        seen = visible(graph, self._mask, i, j)
        seen = real if seen is None else graph.op("And", seen, real)
        shown: str = graph.float32(0.0)
        if self._bias is not None:
            shown = self._bias_tile(graph, self._bias, graph.op("Sub", j, i))
        added = graph.op("Where", seen, shown, graph.float32(-np.inf))
        shape = (engine.mask_heads, engine.block_size, engine.key_tile)
        added = graph.op("Expand", added, graph.ints(*shape))
        rows = graph.reshape(real, engine.key_tile, 1)
        zero = graph.constant(0, engine.dtype)
        return added, graph.op("Where", rows, key, zero), graph.op("Where", rows, value, zero)

    def _moved(self, graph: Graph, place: str) -> str:
        """Where among the keys a query stands that is at ``place`` among the queries."""
        return place if self._first is None else graph.op("Add", place, self._first)

    def _places(self, graph: Graph, number: str, size: int, shape: tuple[int, int]) -> str:
        """The positions of a block's or a tile's tokens."""
        within = graph.reshape(graph.op("Range", graph.int64(0), graph.int64(size), graph.int64(1)), *shape)
        return graph.op("Add", within, graph.op("Mul", number, graph.int64(size)))

    def _bias_tile(self, graph: Graph, bias: RelativeBias, distance: str) -> str:
        """``[heads, M, K]`` for distances ``[M, K]``; see :class:`~twoheads.graphs.program.RelativeBias`."""
        heads = self._engine.q_num_heads
        terms: list[str] = []
        if bias.table is not None:
            width = graph.op("Shape", bias.table, start=1, end=2)
            reach = graph.op("Squeeze", graph.op("Div", width, graph.ints(2)))
            clipped = graph.op("Min", graph.op("Max", distance, graph.op("Neg", reach)), reach)
            table = graph.cast(bias.table, "float32")
            terms.append(graph.op("Gather", table, graph.op("Add", clipped, reach), axis=1))
        if bias.slope is not None:
            slope = graph.reshape(graph.cast(bias.slope, "float32"), heads, 1, 1)
            terms.append(graph.op("Mul", slope, graph.cast(distance, "float32")))
        return terms[0] if len(terms) == 1 else graph.op("Add", *terms)


def _numbers(graph: Graph, chosen: str) -> str:
    """Where a truth value is true, int64 ``[count]``."""
    return graph.reshape(graph.op("NonZero", chosen), -1)
