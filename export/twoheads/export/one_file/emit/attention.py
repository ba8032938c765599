"""Attention as control flow: a loop over query blocks, in it loops over the key tiles that a block needs.

Every call is one of the tile lowering's engines, with what the runtime would give it. Tiles that are seen as a whole
and tiles with a mask are two loops over two lists of numbers, which each query block makes of its mask. Where the
engine can, a block begins with the first tile that is seen as a whole and adds up the others relative to that one's
log-sum-exp; if a weight then leaves the range in which sums are believed, the block is computed again by merging. That
is the runtime's rule (:mod:`twoheads.runtime.stages.attention.anchored_row`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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

__all__ = ["KeyTiles", "Queries", "add_attention", "attend", "attend_once"]


class KeyTiles(Protocol):
    """Keys and values in parts of a tile's size, by number."""

    @property
    def rows(self) -> str:
        """How many keys there are, without padding."""
        ...

    @property
    def count(self) -> str:
        """How many tiles hold them."""
        ...

    def tile(self, graph: Graph, number: str, *, whole: bool) -> tuple[str, str]:
        """Keys and values of tile ``number``, each ``[1, kv_heads, K, ...]``, with anything in the rows of padding.

        ``whole`` says that it has none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of an attention as blocks.

    Attributes:
        blocks: ``[count, 1, q_heads, M, head_dim]``.
        count: How many blocks.
        rows: Queries without padding.
        first: The position of the first one among the keys; 0 if not given.
    """

    blocks: str
    count: str
    rows: str
    first: str | None = None


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
    own = Queries(values.blocks(stage.query), lengths.blocks(queries), lengths.rows(queries))
    tiled = _Tiled(k, v, lengths.rows(keys), tiles)
    values.set_blocks(stage.output.name, attend(graph, stage, engine, engines, own, tiled, cross=queries != keys))


def attend(
    graph: Graph,
    stage: AttentionStage,
    engine: AttentionEngine,
    engines: Engines,
    queries: Queries,
    keys: KeyTiles,
    *,
    cross: bool = False,
) -> str:
    """Appends the loop over query blocks.

    Args:
        graph: Where to.
        stage: What to compute.
        engine: Its engine.
        engines: Make the functions.
        queries: On the stage's own axis.
        keys: In tiles of the engine's width.
        cross: Whether they are on another axis: every query sees all of them.

    Returns:
        The output as blocks ``[count, 1, q_heads, M, v_head_dim]``.
    """
    masks = TileMasks(graph, stage, engine, keys.rows, keys.count, cross=cross, first=queries.first)
    held = _Stage(stage, engine, engines, keys, _nothing_yet(graph, stage, engine), queries.rows)
    body = graph.body()
    at = body.fresh("block")
    row = _Row(held, masks, body, at, body.op("Gather", queries.blocks, at, axis=0))
    result = graph.op("Loop", queries.count, "", name=stage.name, body=row.proto())
    dtype = stage.output.dtype
    return result if dtype == "float32" else graph.cast(result, dtype)


def attend_once(
    graph: Graph, stage: AttentionStage, engine: AttentionEngine, engines: Engines, queries: Queries, keys: KeyTiles
) -> str:
    """Appends the attention of one block of queries, ``[1, q_heads, M, head_dim]``, tiles merged; its output."""
    masks = TileMasks(graph, stage, engine, keys.rows, keys.count, cross=False, first=queries.first)
    held = _Stage(stage, engine, engines, keys, _nothing_yet(graph, stage, engine), queries.rows)
    result = _Row(held, masks, graph, graph.int64(0), queries.blocks).merged(graph)
    dtype = stage.output.dtype
    return result if dtype == "float32" else graph.cast(result, dtype)


@dataclass(frozen=True, slots=True)
class _Tiled:
    """:class:`KeyTiles` that were made at once: ``key`` and ``value`` are ``[tiles, 1, kv_heads, K, ...]``."""

    key: str
    value: str
    rows: str
    count: str

    def tile(self, graph: Graph, number: str, *, whole: bool) -> tuple[str, str]:
        """Of the arrays the entry ``number``."""
        return graph.op("Gather", self.key, number, axis=0), graph.op("Gather", self.value, number, axis=0)


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the body of the loop reads of the graph around it.

    Attributes:
        keys: Of all blocks.
        nothing: The partial result of no tile, or of the learned sinks.
        rows: Queries without padding.
    """

    stage: AttentionStage
    engine: AttentionEngine
    engines: Engines
    keys: KeyTiles
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
    """A block of queries: number ``at``, which is ``query``."""

    def __init__(self, stage: _Stage, masks: TileMasks, graph: Graph, at: str, query: str) -> None:
        self._stage, self._masks, self._graph, self._at, self._query = stage, masks, graph, at, query
        engine = stage.engine
        self._full, self._partial = masks.lists(graph, self._at)
        self._out_shape = (1, engine.q_num_heads, engine.block_size, engine.v_head_dim)

    def proto(self) -> onnx.GraphProto:
        """The finished body of the loop over blocks."""
        graph = self._graph
        condition = graph.fresh("condition")
        out = self._either() if self._adds() else self.merged(graph)
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
            else_branch=merged.proto("merged", [], [(self.merged(merged), "float32")]),
        )

    def merged(self, graph: Graph) -> str:
        """All tiles, merged by log-sum-exp."""
        state = self._loop(graph, "full_merge", self._full, graph.op("Size", self._full), self._stage.nothing)
        return self._loop(graph, "masked_merge", self._partial, graph.op("Size", self._partial), state)[0]

    def _added(self, graph: Graph, counts: list[str]) -> tuple[str, str]:
        """The sums of all tiles relative to the first full one, divided, and whether they are to be believed."""
        stage, engine = self._stage, self._stage.engine
        first = graph.op("Gather", self._full, graph.int64(0))
        anchor = stage.engines.attention(engine, "full_merge")
        out, lse = graph.call(anchor, self._query, *stage.keys.tile(graph, first, whole=True), *stage.nothing)
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

    def _loop(
        self, around: Graph, variant: str, tiles: str, count: str, state: tuple[str, str], query: str = ""
    ) -> tuple[str, str]:
        """Calls of one variant, one after the other, over a list of tiles."""
        graph = around.body()
        at, condition = graph.fresh("at"), graph.fresh("condition")
        carried = (graph.fresh("carried"), graph.fresh("carried"))
        number = graph.op("Gather", tiles, at, axis=0)
        masked = variant.startswith("masked")
        key, value = self._stage.keys.tile(graph, number, whole=not masked)
        mask: tuple[str, ...] = ()
        if masked:
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
