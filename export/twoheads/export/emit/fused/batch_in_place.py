"""Attention in place of several sequences; see :mod:`twoheads.graphs.variants.in_place.batch_in_place`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from twoheads.export.emit.graph_builder import DOMAIN, OPSET, GraphBuilder
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE

__all__ = ["batch_in_place_model"]


def batch_in_place_model(engine: BatchInPlace) -> onnx.ModelProto:
    """The engine as a fixed-shape ONNX model, with its ports in order."""
    graph, geometry = GraphBuilder(), engine.geometry
    how: dict[str, Any] = {
        "num_heads": geometry.q_num_heads,
        "kv_num_heads": geometry.kv_num_heads,
        "scale": geometry.scale,
    }
    # Of all slots at once: where the last row is written, and how many keys there are then.
    counted = [
        graph.node("Add", PLACE, graph.array(f"rows_{rows}", np.full(1, rows, np.int32)))
        for rows in (engine.rows - 1, engine.rows)
    ]
    slots = [_split(graph, name, engine.slots) for name in ("q", "k", "v", *counted)]
    outs: list[str] = []
    for at, (q, k, v, last, total) in enumerate(zip(*slots, strict=True)):
        past = [f"past_key_{at}", f"past_value_{at}"]
        outs.append(f"out_{at}" if engine.slots > 1 else "out")
        made = [outs[-1], *(NEXT + name for name in past)]
        read = [q, k, v, *past, last, total]
        graph.nodes.append(
            onnx.helper.make_node("GroupQueryAttention", read, made, name=outs[-1], domain=DOMAIN, **how)
        )
    if engine.slots > 1:
        graph.node("Concat", *outs, axis=0, output="out")
    return graph.model(engine.name, engine.inputs, engine.outputs, {"": OPSET, DOMAIN: 1})


def _split(graph: GraphBuilder, name: str, slots: int) -> list[str]:
    """An array's slots, ``[1, ...]`` each."""
    if slots == 1:
        return [name]
    made = [f"{name}_{at}" for at in range(slots)]
    sizes = graph.constant([1] * slots)
    graph.nodes.append(onnx.helper.make_node("Split", [name, sizes], made, name=f"{name}_slots", axis=0))
    return made
