"""Attention of one row of each of several sequences as one ONNX file; see :mod:`twoheads.graphs.variants.batch_steps`.

Slots are folded into heads: a slot's group of query heads meets that slot's keys in a product of its own. Where a
group has one head, its row is computed twice: a product of one row takes another kernel, with other last bits.
"""

from __future__ import annotations

from dataclasses import replace

import onnx

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.export.emit.tile_attention import product, scores_of
from twoheads.graphs.variants.batch_steps import SLOTS, BatchAttention

__all__ = ["batch_attention_model"]


def batch_attention_model(engine: BatchAttention) -> onnx.ModelProto:
    """The engine as a fixed-shape ONNX model of standard operators, with its ports in order."""
    graph, geometry = GraphBuilder(), engine.geometry
    heads, group = SLOTS * geometry.kv_num_heads, geometry.q_num_heads // geometry.kv_num_heads
    query, rows = "q", max(group, 2)
    if group == 1:
        query = graph.node("Concat", "q", "q", axis=2)
    wide = replace(geometry, q_num_heads=heads * rows, kv_num_heads=heads)
    parts = [(name, keys) for name, keys in (("past", engine.past), ("open", engine.opened)) if keys]
    scores = [scores_of(graph, replace(wide, key_tile=keys), query, f"{name}_key") for name, keys in parts]
    whole = graph.node("Concat", *scores, axis=-1) if len(scores) > 1 else scores[0]
    whole = _masked(graph, engine, whole, rows)
    widths = [keys for _, keys in parts]
    if engine.sinks:
        column = graph.node(
            "Expand", graph.reshape("sinks", 1, -1, 1), graph.constant([SLOTS, geometry.q_num_heads, 1])
        )
        column = graph.reshape(column, heads, group, 1)
        if group == 1:
            column = graph.node("Concat", column, column, axis=1)
        whole, widths = graph.node("Concat", whole, column, axis=-1), [*widths, 1]
    shares = _split(graph, graph.node("Softmax", whole, axis=-1), widths)
    out = ""
    for share, (name, keys) in zip(shares, parts, strict=False):
        values = graph.reshape(f"{name}_value", heads, keys, geometry.v_head_dim)
        part = product(graph, geometry, share, values)
        out = graph.node("Add", out, part) if out else part
    if group == 1:
        out = _columns(graph, out, 0, 1, axis=1)
    graph.reshape(out, SLOTS, geometry.q_num_heads, 1, geometry.v_head_dim, output="out")
    return graph.model(engine.name, engine.inputs, engine.outputs)


def _masked(graph: GraphBuilder, engine: BatchAttention, scores: str, rows: int) -> str:
    """The scores ``[slots * kv_heads, rows, keys]`` plus what is added to those of each slot."""
    geometry, keys = engine.geometry, engine.past + engine.opened
    heads = geometry.kv_num_heads
    shape = (1, 1) if geometry.mask_heads == 1 else (heads, geometry.q_num_heads // heads)
    added = graph.reshape("mask", SLOTS, *shape, keys)
    folded = graph.reshape(scores, SLOTS, heads, rows, keys)
    return graph.reshape(graph.node("Add", folded, added), SLOTS * heads, rows, keys)


def _split(graph: GraphBuilder, shares: str, widths: list[int]) -> list[str]:
    if len(widths) == 1:
        return [shares]
    starts = [sum(widths[:at]) for at in range(len(widths))]
    return [_columns(graph, shares, first, first + width) for first, width in zip(starts, widths, strict=True)]


def _columns(graph: GraphBuilder, value: str, start: int, stop: int, axis: int = -1) -> str:
    first, last, along = (graph.constant([number]) for number in (start, stop, axis))
    return graph.node("Slice", value, first, last, along)
