"""The attention engines of the ``tile`` lowering as ONNX: one query block over one key tile.

All variants share one graph. Heads of a group are folded into rows, so that keys are neither transposed nor repeated:
``q [1, q_num_heads, block, head_dim]`` is seen as ``[kv_num_heads, group * block, head_dim]``.

Softmax hides its statistics, but not entirely: the largest probability of a row is ``exp(max - lse)``, therefore
``lse = max(s) - log(max(softmax(s)))``. Two row maxima around one fused Softmax pass over the scores less often than
the textbook's max, subtract, exp, sum, and were the fastest of the exact formulations on ONNX Runtime's CPU kernels
(256 x 256, 9/3 heads of 64, float32, one thread: 134 instead of 110 GFLOP/s, 120 instead of 102 when merging; the
two matrix products alone would reach 190).

The ``_add`` variants do without maxima, divisions and logarithms, and without subtracting anything from the scores:
the anchor is a column of the queries, so the product itself subtracts it (128 x 256, same heads: 81 to 86 % of the
speed of a 512 x 512 x 512 product, where the merging variants reach 70 %; an anchor subtracted by an operator of its
own, 76 %).

Values of one number per row keep the shape ``[1, q_num_heads, block]``: a trailing dimension of 1 would make every
scalar operation on them an inner loop of length 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.engines.request_codes import code_length
from twoheads.graphs.program.program import AttentionEngine

__all__ = ["DEAD", "attention_model", "product", "scores_of"]

DEAD = -1e30
"""Scores at or below this are "no key seen"; finite, so that differences never are ``inf - inf``."""

REACH = 60.0
"""Hidden scores are raised to ``max - REACH``: their weight ``exp(-60) = 9e-27`` vanishes beside the row's largest, 1,
but it and its products with values stay normal numbers. Denormal ones make the exponential ten times slower and the
matrix product five times. (Tiles without a mask need no such guard: in 1,024 tokens of text through all layers of
SmolLM2-135M and Gemma-3-270M no score was more than 73 below the largest of its tile's row.)"""

FLOOR = 80.0
"""What :data:`REACH` is where scores are relative to an anchor: ``exp(-80) = 2e-35`` is still a normal number."""

_DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def attention_model(engine: AttentionEngine, variant: str) -> onnx.ModelProto:
    """The ONNX model of one variant of ``engine``, with the ports that ``engine.ports(variant)`` declares.

    Args:
        engine: The attention's geometry.
        variant: One of ``engine.variants``.

    Returns:
        A model of standard operators with static shapes. ``engine.dtype`` is what the two products are in, of queries
        that are scaled already, so that scores keep within float16; all between and behind them is float32.

    Raises:
        CompileError: The engine's dtype is not a floating-point type of at least 16 bits.
        InternalError: There is no such variant, or query heads do not divide into key/value heads.
    """
    _check(engine, variant)
    graph, name = GraphBuilder(), f"{engine.name}.{variant}"
    if variant in AttentionEngine.PACKED_VARIANTS:
        _rename(graph, {_packed(graph, engine, causal=variant == "packed_causal"): "out"})
        return graph.model(name, *engine.ports(variant))
    if variant in AttentionEngine.ADD_VARIANTS:
        acc, weight = _add(graph, engine, masked=variant.startswith("masked"))
        _rename(graph, {acc: "acc", weight: "weight"})
        return graph.model(name, *engine.ports(variant))
    scores = scores_of(graph, engine, "q", "k", mask="mask" if variant.startswith("masked") else "")
    if variant.startswith("masked"):
        out, lse = _softmax_masked(graph, engine, scores)
    else:
        out, lse = _softmax(graph, engine, scores)
    if variant.endswith("_merge"):
        out, lse = _merge(graph, engine, out, lse)
    # Results are named by renaming the last node: an extra Identity would be an extra copy.
    _rename(graph, {out: "out", lse: "lse"})
    return graph.model(name, *engine.ports(variant))


def _check(engine: AttentionEngine, variant: str) -> None:
    if variant not in engine.variants:
        raise InternalError(f"engine {engine.name}: no variant {variant!r}")
    if engine.q_num_heads % engine.kv_num_heads:
        raise InternalError(
            f"engine {engine.name}: {engine.q_num_heads} query heads, {engine.kv_num_heads} key/value heads"
        )
    if engine.mask_heads not in (1, engine.q_num_heads):
        raise InternalError(f"engine {engine.name}: a mask of {engine.mask_heads} heads")
    if engine.dtype not in _DTYPES:
        raise CompileError(
            f"attention engine {engine.name}",
            f"computes in {engine.dtype}, which has no engine",
            f"compile with one of {', '.join(_DTYPES)}",
        )


def _rename(graph: GraphBuilder, names: dict[str, str]) -> None:
    for node in graph.nodes:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)


def product(graph: GraphBuilder, engine: AttentionEngine, left: str, right: str) -> str:
    """The float32 ``left`` times ``right``, which is of the engine's dtype: a product in that, given as float32."""
    if engine.dtype == "float32":
        return graph.node("MatMul", left, right)
    rounded = graph.node("Cast", left, to=_DTYPES[engine.dtype])
    return graph.node("Cast", graph.node("MatMul", rounded, right), to=TensorProto.FLOAT)


def scores_of(
    graph: GraphBuilder, engine: AttentionEngine, q: str, k: str, *, mask: str = "", anchored: bool = False
) -> str:
    """Scores ``[kv_heads, group * block, key_tile]`` of the values ``q`` and ``k``: scaled, capped, plus the mask.

    ``mask`` names a value of ``mask_heads * block * key_tile`` numbers, or is empty. ``anchored`` queries have one more
    column, which every key answers with 1.
    """
    group = engine.q_num_heads // engine.kv_num_heads
    rows = (engine.kv_num_heads, group * engine.block_size)
    if engine.distances:
        return _scores_by_distance(graph, engine, q, k, mask)
    if engine.dtype != "float32":
        q = graph.node("Cast", q, to=TensorProto.FLOAT)
    queries = graph.reshape(q, *rows, engine.head_dim + anchored)
    keys = graph.reshape(k, engine.kv_num_heads, engine.key_tile, engine.head_dim)
    if anchored:
        ones = np.ones((engine.kv_num_heads, engine.key_tile, 1), np.float32)
        keys = graph.node("Concat", keys, graph.array("ones", ones), axis=-1)
    # A Mul right before the MatMul becomes the product's alpha in ONNX Runtime, the Transpose its transB flag.
    factor = engine.scale / (engine.softcap or 1.0)
    if factor != 1.0:
        queries = graph.node("Mul", queries, graph.constant(factor))
    scores = product(graph, engine, queries, graph.node("Transpose", keys, perm=[0, 2, 1]))
    if engine.softcap:
        scores = graph.node("Mul", graph.node("Tanh", scores), graph.constant(engine.softcap))
    if mask:
        heads = (1, 1) if engine.mask_heads == 1 else (engine.kv_num_heads, group)
        added = graph.reshape(mask, *heads, engine.block_size, engine.key_tile)
        scores = graph.reshape(scores, engine.kv_num_heads, group, engine.block_size, engine.key_tile)
        scores = graph.reshape(graph.node("Add", scores, added), *rows, engine.key_tile)
    return scores


def _scores_by_distance(graph: GraphBuilder, engine: AttentionEngine, q: str, k: str, mask: str) -> str:
    """Scores ``[heads, block, key_tile]`` of columns that are multiplied and columns that ``mask`` chooses from.

    What a query has for the distance to a key is one of its last columns; a key's is found in the same way, transposed.
    """
    heads, block, tile = engine.q_num_heads, engine.block_size, engine.key_tile
    width = engine.head_dim - engine.distances
    parts: list[list[str]] = []
    for operand, size in ((q, block), (k, tile)):
        rows = graph.reshape(operand, heads, size, engine.head_dim)
        bounds = ((0, width), (width, engine.head_dim))
        parts.append([graph.node("Slice", rows, *(graph.constant([at]) for at in (*cut, 2))) for cut in bounds])
    (queries, by_query), (keys, by_key) = parts
    if engine.dtype != "float32":
        queries, by_query, by_key = (
            graph.node("Cast", part, to=TensorProto.FLOAT) for part in (queries, by_query, by_key)
        )
    if engine.scale != 1.0:
        queries = graph.node("Mul", queries, graph.constant(engine.scale))
    scores = product(graph, engine, queries, graph.node("Transpose", keys, perm=[0, 2, 1]))
    if not mask:
        return scores  # no call is without a mask; the file is there as every engine's is
    largest = graph.constant(float(engine.distances - 1))
    index = graph.node("Cast", graph.node("Clip", mask, graph.constant(0.0), largest), to=TensorProto.INT64)
    index = graph.node("Expand", index, graph.constant([heads, block, tile]))
    from_keys = graph.node("GatherElements", by_key, graph.node("Transpose", index, perm=[0, 2, 1]), axis=2)
    chosen = graph.node(
        "Add", graph.node("GatherElements", by_query, index, axis=2), graph.node("Transpose", from_keys, perm=[0, 2, 1])
    )
    if engine.scale != 1.0:
        chosen = graph.node("Mul", chosen, graph.constant(engine.scale))
    hidden = graph.node("Min", mask, graph.constant(0.0))
    return graph.node("Add", graph.node("Add", scores, chosen), hidden)


def _softmax(graph: GraphBuilder, engine: AttentionEngine, scores: str) -> tuple[str, str]:
    """``out [1, q_heads, block, v_head_dim]`` and ``lse [1, q_heads, block]`` of finite scores."""
    largest = graph.row_max(scores)
    weights = graph.node("Softmax", scores, axis=-1)
    lse = graph.node("Sub", largest, graph.node("Log", graph.row_max(weights)))
    return _weighted_values(graph, engine, weights), graph.reshape(lse, 1, engine.q_num_heads, engine.block_size)


def _softmax_masked(graph: GraphBuilder, engine: AttentionEngine, scores: str) -> tuple[str, str]:
    """As :func:`_softmax`, for scores of ``-inf`` where hidden; a row that sees no key gives 0 and ``-inf``."""
    shape = (1, engine.q_num_heads, engine.block_size)
    largest = graph.node("Clip", graph.row_max(scores), graph.constant(DEAD))
    floor = graph.node("Sub", largest, graph.constant(REACH))
    floor = graph.reshape(floor, engine.kv_num_heads, -1, 1)
    weights = graph.node("Softmax", graph.node("Max", scores, floor), axis=-1)
    alive = graph.node("Cast", graph.node("Greater", largest, graph.constant(DEAD)), to=TensorProto.FLOAT)
    lse = graph.node("Add", largest, graph.node("Log", graph.node("Div", alive, graph.row_max(weights))))
    out = graph.node("Mul", _weighted_values(graph, engine, weights), graph.reshape(alive, *shape, 1))
    return out, graph.reshape(lse, *shape)


def _add(graph: GraphBuilder, engine: AttentionEngine, *, masked: bool) -> tuple[str, str]:
    """``acc`` and ``weight`` with this tile's share, relative to the anchor; see :class:`AttentionEngine`.

    There is one pass over the scores between the two products, and one to add up the weights. Hidden scores weigh
    ``exp(-FLOOR)`` instead of 0, which is below half a unit in the last place of any row's weight, 1 at the least.
    """
    scores = scores_of(graph, engine, "q", "k", mask="mask" if masked else "", anchored=True)
    if masked:
        scores = graph.node("Max", scores, graph.constant(-FLOOR))
    weights = graph.node("Exp", scores)
    total = graph.node("ReduceSum", weights, graph.constant([-1]), keepdims=0)
    total = graph.reshape(total, 1, engine.q_num_heads, engine.block_size)
    acc = graph.node("Add", "prev_acc", _weighted_values(graph, engine, weights))
    return acc, graph.node("Add", "prev_weight", total)


def _packed(graph: GraphBuilder, engine: AttentionEngine, *, causal: bool) -> str:
    """``out`` of a block over itself, whose queries and keys carry the codes of Theorem 4.2 as further columns.

    The triangle of a causal engine is a comparison of two constant vectors, which a backend computes once.
    """
    block = engine.block_size
    wide = replace(engine, head_dim=engine.head_dim + code_length(block), key_tile=block)
    scores = scores_of(graph, wide, "q", "k")
    if causal:
        at = np.arange(block, dtype=np.int64)
        rows = np.tile(at, engine.q_num_heads // engine.kv_num_heads)[:, None]
        later = graph.node("Less", graph.array("query_positions", rows), graph.array("key_positions", at))
        scores = graph.node("Where", later, graph.constant(DEAD), scores)
    # A score of another request would be a weight of 0 by way of denormal numbers, which are slow; see REACH.
    floor = graph.node("Sub", graph.reshape(graph.row_max(scores), engine.kv_num_heads, -1, 1), graph.constant(REACH))
    return _weighted_values(graph, wide, graph.node("Softmax", graph.node("Max", scores, floor), axis=-1))


def _weighted_values(graph: GraphBuilder, engine: AttentionEngine, weights: str) -> str:
    v = graph.reshape("v", engine.kv_num_heads, engine.key_tile, engine.v_head_dim)
    out = product(graph, engine, weights, v)
    return graph.reshape(out, 1, engine.q_num_heads, engine.block_size, engine.v_head_dim)


def _merge(graph: GraphBuilder, engine: AttentionEngine, out: str, lse: str) -> tuple[str, str]:
    """``merge_state`` of the earlier tiles' ``prev_out``, ``prev_lse`` with this tile's; exact where one is empty.

    ``out + w (prev_out - out)`` with ``w = sigmoid(prev_lse - lse)``, and ``lse = max + log(1 + exp(-|difference|))``.
    """
    # Only one side needs to be finite: an earlier -inf gives a difference of -inf, and so a share of 0.
    difference = graph.node("Sub", "prev_lse", graph.node("Clip", lse, graph.constant(DEAD)))
    one = graph.constant(1.0)
    # 1 / (1 + exp(-x)) instead of Sigmoid, whose kernel saturates at 18 and so would lose weights below 1.5e-8.
    denominator = graph.node("Add", graph.node("Exp", graph.node("Neg", difference)), one)
    share = graph.reshape(graph.node("Reciprocal", denominator), 1, engine.q_num_heads, engine.block_size, 1)
    merged = graph.node("Add", out, graph.node("Mul", graph.node("Sub", "prev_out", out), share))
    smaller = graph.node("Exp", graph.node("Neg", graph.node("Abs", difference)))
    gain = graph.node("Log", graph.node("Add", smaller, one))
    return merged, graph.node("Add", graph.node("Max", "prev_lse", lse), gain)
