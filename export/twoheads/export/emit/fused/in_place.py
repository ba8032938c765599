"""A step of a few rows that writes keys and values in place; see :mod:`twoheads.graphs.variants.in_place`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from twoheads.export.emit.fused.step import StepGraph
from twoheads.export.emit.graph_builder import DOMAIN
from twoheads.export.emit.lean.lean_row import lean_row
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.graphs.program.wiring import ReadWeight
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE, InPlaceSteps
from twoheads.graphs.variants.in_place.rounded_steps import SCALE, RoundedSteps
from twoheads.graphs.variants.steps import StepEngine

__all__ = ["in_place_model"]

UNUSED = ("",) * 5
"""Inputs of the operator between lengths and scales: rotary positions, a bias and sinks."""


def in_place_model(
    steps: InPlaceSteps, engine: StepEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
) -> onnx.ModelProto | None:
    """The engine as a fixed-shape ONNX model with some of ONNX Runtime's own operators.

    Args:
        steps: What the engine is of.
        engine: What to make.
        engines: The models of the token-wise engines by name, for as many rows, their weights being inputs.
        weight: Reads the learned sinks, which become constants.

    Returns:
        As :func:`~twoheads.export.emit.fused.step.step_model`.
    """
    model = _InPlace(steps, engine, engines, weight).model(engine)
    if model is None:
        return None
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    if engine.rows == 1:
        lean_row(model)
    return model


class _InPlace(StepGraph):
    """The graph under construction."""

    def __init__(
        self, steps: InPlaceSteps, engine: StepEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
    ) -> None:
        super().__init__(steps.steps, engine, engines, weight)
        self._stages, self._rounded = steps.stages, isinstance(steps, RoundedSteps)
        self._lengths: tuple[str, str] | None = None

    def attention(self, stage: AttentionStage) -> None:
        """Appends attention of the rows over all keys that are there, which end in theirs, and puts these in place."""
        if stage.name not in self._stages:
            super().attention(stage)
            return
        graph, engine = self.graph, self.program.engine_of(AttentionEngine, stage.engine)
        heads, width, count = engine.q_num_heads, engine.head_dim, self._rows
        rows = [self._by_row(stage.query, heads, width)]
        rows += [self._by_row(name, engine.kv_num_heads, width) for name in (stage.key, stage.value)]
        numbers = [self.kept[name][0] for name in (stage.key, stage.value)]
        past = [f"past_{at}" for at in numbers]
        out = f"{self.name(stage.output.name)}.rows"
        how: dict[str, Any] = {"num_heads": heads, "kv_num_heads": engine.kv_num_heads, "scale": engine.scale}
        made, read = [out, *(NEXT + name for name in past)], [*rows, *past, *self._places()]
        if self._rounded:
            read += [*UNUSED, *(f"{SCALE}{at}" for at in numbers)]
            how |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        graph.nodes.append(onnx.helper.make_node("GroupQueryAttention", read, made, name=out, domain=DOMAIN, **how))
        shape = [1, count, heads * width]
        graph.value_info.append(onnx.helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, shape))
        if count == 1:
            graph.reshape(out, 1, heads, 1, width, output=self.name(stage.output.name))
        else:
            by_head = graph.reshape(out, 1, count, heads, width)
            graph.node("Transpose", by_head, perm=[0, 2, 1, 3], output=self.name(stage.output.name))

    def _by_row(self, value: str, heads: int, width: int) -> str:
        """``[1, heads, rows, width]`` as the operator reads it: ``[1, rows, heads * width]``."""
        name = self.name(value)
        if self._rows > 1:
            name = self.graph.node("Transpose", name, perm=[0, 2, 1, 3])
        return self.graph.reshape(name, 1, self._rows, heads * width)

    def _places(self) -> tuple[str, str]:
        """Where the last row is written, and how many keys there are then, made once."""
        if self._lengths is None:
            graph, last = self.graph, PLACE
            if self._rows > 1:
                last = graph.node("Add", PLACE, graph.array("rows_behind", np.full(1, self._rows - 1, np.int32)))
            count = graph.node("Add", last, graph.array("one_row", np.ones(1, np.int32)))
            self._lengths = last, graph.reshape(count)
        return self._lengths
