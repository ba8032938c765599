"""Attention as control flow: a loop over query blocks, in it loops over the key tiles that a block needs.

Every call is one of the tile lowering's engines, with what the runtime would give it. Tiles that are seen as a whole
and tiles with a mask are two loops over two lists of numbers, which each query block makes of its mask. Where the
engine can, a block begins with the first tile that is seen as a whole and adds up the others relative to that one's
log-sum-exp; if a weight then leaves the range in which sums are believed, the block is computed again by merging. That
is the runtime's rule (:mod:`twoheads.runtime.stages.attention.anchored_row`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.tile_masks import TileMasks
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.costs.variant_counts import LEAST_ADDED_TILES
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Value
from twoheads.runtime.stages.attention.anchored_row import MOST_WEIGHT

__all__ = ["add_attention"]


def add_attention(
    graph: Graph, stage: AttentionStage, engine: AttentionEngine, values: Values, lengths: Lengths, engines: Engines
) -> None:
    """Appends an attention to the file's own graph; its output is among ``values`` then.

    Args:
        graph: The file's own graph.
        stage: What to compute. Its weights (sinks, bias) are initializers by name.
        engine: Its engine, as wide as the file's key tiles are.
        values: Hold its queries, keys and values.
        lengths: Of the axes.
        engines: Make the functions.
    """
    queries, keys = values.declared(stage.query).axis, values.declared(stage.key).axis
    if queries is None or keys is None:
        raise InternalError(f"stage {stage.name} attends to row values")
    tiles, blocks = lengths.parts(keys, engine.key_tile), lengths.blocks(keys)
    k, v = (
        _tiled(graph, values.declared(name), values.blocks(name), engine, blocks, tiles)
        for name in (stage.key, stage.value)
    )
    out, lse = _nothing_yet(graph, stage, engine)
    body = _Row(
        _Stage(stage, engine, engines, values.blocks(stage.query), k, v, (out, lse), lengths.rows(queries)),
        TileMasks(graph, stage, engine, lengths.rows(keys), tiles, cross=queries != keys),
        graph.body(),
    )
    result = graph.op("Loop", lengths.blocks(queries), "", name=stage.name, body=body.proto())
    dtype = stage.output.dtype
    values.set_blocks(stage.output.name, result if dtype == "float32" else graph.cast(result, dtype))


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the body of the loop reads of the graph around it.

    Attributes:
        query: ``[blocks, 1, q_heads, M, head_dim]``.
        key, value: ``[tiles, 1, kv_heads, K, ...]``.
        nothing: The partial result of no tile, or of the learned sinks.
        rows: Queries without padding.
    """

    stage: AttentionStage
    engine: AttentionEngine
    engines: Engines
    query: str
    key: str
    value: str
    nothing: tuple[str, str]
    rows: str


def _tiled(graph: Graph, value: Value, blocks: str, engine: AttentionEngine, count: str, tiles: str) -> str:
    """Blocks ``[B, 1, heads, M, d]`` as tiles ``[T, 1, heads, K, d]``, zeros behind the last block."""
    wide = engine.key_tile // engine.block_size
    if wide == 1:
        return blocks
    missing = graph.op("Sub", graph.op("Mul", tiles, graph.int64(wide)), count)
    pads = graph.op("Concat", graph.ints(*[0] * 5), graph.vector(missing), graph.ints(*[0] * 4), axis=0)
    one, heads, size, width = value.block_shape(engine.block_size)
    apart = graph.reshape(graph.op("Pad", blocks, pads), -1, wide, one, heads, size, width)
    beside = graph.op("Transpose", apart, perm=[0, 2, 3, 1, 4, 5])
    return graph.reshape(beside, -1, one, heads, engine.key_tile, width)


def _nothing_yet(graph: Graph, stage: AttentionStage, engine: AttentionEngine) -> tuple[str, str]:
    """``out`` and ``lse`` before the first tile: zeros, and no weight or that of the learned sinks."""
    shape = (1, engine.q_num_heads, engine.block_size)
    out = graph.op("Expand", graph.float32(0.0), graph.ints(*shape, engine.v_head_dim))
    if stage.sinks is None:
        return out, graph.op("Expand", graph.float32(-np.inf), graph.ints(*shape))
    logits = graph.reshape(graph.cast(stage.sinks, "float32"), 1, engine.q_num_heads, 1)
    return out, graph.op("Expand", logits, graph.ints(*shape))


class _Row:
    """The body of the loop over query blocks."""

    def __init__(self, stage: _Stage, masks: TileMasks, graph: Graph) -> None:
        self._stage, self._masks, self._graph = stage, masks, graph
        self._at = graph.fresh("block")
        engine = stage.engine
        self._query = graph.op("Gather", stage.query, self._at, axis=0)
        self._full, self._partial = masks.lists(graph, self._at)
        self._out_shape = (1, engine.q_num_heads, engine.block_size, engine.v_head_dim)

    def proto(self) -> onnx.GraphProto:
        """The finished body."""
        graph = self._graph
        condition = graph.fresh("condition")
        out = self._either() if self._adds() else self._merged(graph)
        ports = [declared(self._at, "int64", []), declared(condition, "bool", [])]
        return graph.proto("query_block", ports, [(condition, "bool"), (out, "float32")])

    def _adds(self) -> bool:
        return self._stage.engine.adds and self._stage.stage.bias is None

    def _either(self) -> str:
        """The sums where they are good, else the tiles merged."""
        graph = self._graph
        counts = [graph.op("Size", tiles) for tiles in (self._full, self._partial)]
        enough = graph.op("GreaterOrEqual", graph.op("Add", *counts), graph.int64(LEAST_ADDED_TILES))
        enough = graph.op("And", enough, graph.op("Greater", counts[0], graph.int64(0)))
        added, nothing = graph.body(), graph.body()
        out, good = self._added(added, counts)
        never = nothing.constant(False, "bool")
        out, good = graph.ops(
            "If",
            enough,
            outputs=2,
            then_branch=added.proto("added", [], [(out, "float32"), (good, "bool")]),
            else_branch=nothing.proto("not_added", [], [(self._stage.nothing[0], "float32"), (never, "bool")]),
        )
        kept, merged = graph.body(), graph.body()
        return graph.op(
            "If",
            good,
            then_branch=kept.proto("kept", [], [(out, "float32")]),
            else_branch=merged.proto("merged", [], [(self._merged(merged), "float32")]),
        )

    def _merged(self, graph: Graph) -> str:
        """All tiles, merged by log-sum-exp."""
        state = self._loop(graph, "full_merge", self._full, graph.op("Size", self._full), self._stage.nothing)
        return self._loop(graph, "masked_merge", self._partial, graph.op("Size", self._partial), state)[0]

    def _added(self, graph: Graph, counts: list[str]) -> tuple[str, str]:
        """The sums of all tiles relative to the first full one, divided, and whether they are to be believed."""
        stage, engine = self._stage, self._stage.engine
        first = graph.op("Gather", self._full, graph.int64(0))
        anchor = stage.engines.attention(engine, "full_merge")
        out, lse = graph.call(anchor, self._query, *self._tile(graph, first), *stage.nothing)
        column = graph.op("Unsqueeze", graph.op("Div", lse, graph.float32(-engine.scale)), graph.ints(-1))
        query = graph.op("Concat", self._query, column, axis=-1)
        one = graph.op("Expand", graph.float32(1.0), graph.ints(*self._out_shape[:3]))
        rest = graph.op("Slice", self._full, graph.ints(1), graph.ints(np.iinfo(np.int64).max), graph.ints(0))
        count = graph.op("Sub", counts[0], graph.int64(1))
        state = self._loop(graph, "full_add", rest, count, (out, one), query)
        acc, weight = self._loop(graph, "masked_add", self._partial, counts[1], state, query)
        others = graph.cast(graph.op("Add", count, counts[1]), "float32")
        believed = graph.op("LessOrEqual", weight, graph.op("Mul", others, graph.float32(MOST_WEIGHT)))
        believed = graph.op("Or", believed, graph.op("Not", self._real(graph)))
        good = graph.op("Greater", graph.op("ReduceMin", graph.cast(believed, "int32"), keepdims=0), self._zero(graph))
        return graph.op("Div", acc, graph.op("Unsqueeze", weight, graph.ints(-1))), good

    def _zero(self, graph: Graph) -> str:
        return graph.constant(0, "int32")

    def _real(self, graph: Graph) -> str:
        """Whether a query of the block is no padding, ``[M]``."""
        size = self._stage.engine.block_size
        within = graph.op("Range", graph.int64(0), graph.int64(size), graph.int64(1))
        at = graph.op("Add", within, graph.op("Mul", self._at, graph.int64(size)))
        return graph.op("Less", at, self._stage.rows)

    def _tile(self, graph: Graph, number: str) -> tuple[str, str]:
        """Keys and values of a tile."""
        return graph.op("Gather", self._stage.key, number, axis=0), graph.op(
            "Gather", self._stage.value, number, axis=0
        )

    def _loop(
        self, around: Graph, variant: str, tiles: str, count: str, state: tuple[str, str], query: str = ""
    ) -> tuple[str, str]:
        """Calls of one variant, one after the other, over a list of tiles."""
        graph = around.body()
        at, condition = graph.fresh("at"), graph.fresh("condition")
        carried = (graph.fresh("carried"), graph.fresh("carried"))
        number = graph.op("Gather", tiles, at, axis=0)
        key, value = self._tile(graph, number)
        mask: tuple[str, ...] = ()
        if variant.startswith("masked"):
            added, key, value = self._masks.apply(graph, self._at, number, key, value)
            mask = (added,)
        function = self._stage.engines.attention(self._stage.engine, variant)
        new = graph.call(function, query or self._query, key, value, *mask, *carried)
        ports = [
            declared(at, "int64", []),
            declared(condition, "bool", []),
            declared(carried[0], "float32", self._out_shape),
            declared(carried[1], "float32", self._out_shape[:3]),
        ]
        outputs = [(condition, "bool"), *((value, "float32") for value in new)]
        body = graph.proto(f"{variant}_tile", ports, outputs)
        first, second = around.ops("Loop", count, "", *state, outputs=2, body=body)
        return first, second
