"""Attention in place of several sequences; see :mod:`twoheads.graphs.variants.in_place.batch_in_place`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from twoheads.export.emit.fused.in_place import BIAS, HIDDEN_ROWS, UNUSED
from twoheads.export.emit.graph_builder import DOMAIN, OPSET, GraphBuilder
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE
from twoheads.graphs.variants.steps import HIDDEN

__all__ = ["batch_in_place_model"]


def batch_in_place_model(engine: BatchInPlace) -> onnx.ModelProto:
    """The engine as a fixed-shape ONNX model, with its ports in order."""
    graph, geometry = GraphBuilder(), engine.geometry
    how: dict[str, Any] = {
        "num_heads": engine.heads,
        "kv_num_heads": geometry.kv_num_heads,
        "scale": geometry.scale,
    }
    # Of all slots at once: where the last row is written, and how many keys there are then.
    counted = [
        graph.node("Add", PLACE, graph.array(f"rows_{rows}", np.full(1, rows, np.int32)))
        for rows in (engine.rows - 1, engine.rows)
    ]
    slots = [_split(graph, name, engine.slots) for name in ("q", "k", "v", *counted)]
    hidden = _hidden_rows(graph, engine)
    outs: list[str] = []
    for at, (q, k, v, last, total) in enumerate(zip(*slots, strict=True)):
        past = [f"past_key_{at}", f"past_value_{at}"]
        outs.append(f"out_{at}" if engine.slots > 1 else "out")
        made = [outs[-1], *(NEXT + name for name in past)]
        read = [q, k, v, *past, last, total, *hidden[at]]
        graph.nodes.append(
            onnx.helper.make_node("GroupQueryAttention", read, made, name=outs[-1], domain=DOMAIN, **how)
        )
    if engine.slots > 1:
        graph.node("Concat", *outs, axis=0, output="out")
    return graph.model(engine.name, engine.inputs, engine.outputs, {"": OPSET, DOMAIN: 1})


def _hidden_rows(graph: GraphBuilder, engine: BatchInPlace) -> list[list[str]]:
    """Of every slot the inputs behind the lengths; folded, a bias ``[1, 1, rows, keys]`` hides rows behind the first.

    The operator takes exactly as many columns as there are keys, which no shape tells.
    """
    if engine.fold == 1:
        return [[]] * engine.slots
    row = np.array([0.0] * engine.keys + [HIDDEN] * (engine.rows - 1), np.float32)
    whole = graph.array("rows_behind", np.tile(row, (1, 1, engine.rows, 1)))
    before = graph.node("Sub", graph.array("last_place", np.full(1, engine.keys - 1, np.int32)), PLACE)
    starts = _split(graph, graph.node("Cast", before, to=onnx.TensorProto.INT64), engine.slots)
    ends, axis = graph.constant([len(row)]), graph.constant([-1])
    cuts = [
        graph.node("Slice", whole, start, ends, axis, output=f"{HIDDEN_ROWS}_{at}") for at, start in enumerate(starts)
    ]
    return [[*UNUSED[:BIAS], cut] for cut in cuts]


def _split(graph: GraphBuilder, name: str, slots: int) -> list[str]:
    """An array's slots, ``[1, ...]`` each."""
    if slots == 1:
        return [name]
    made = [f"{name}_{at}" for at in range(slots)]
    sizes = graph.constant([1] * slots)
    graph.nodes.append(onnx.helper.make_node("Split", [name, sizes], made, name=f"{name}_slots", axis=0))
    return made
