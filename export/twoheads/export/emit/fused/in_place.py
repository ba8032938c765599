"""A step of one row that writes keys and values in place; see :mod:`twoheads.graphs.variants.in_place`."""

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
        engines: The models of the token-wise engines by name, for one row, their weights being inputs.
        weight: Reads the learned sinks, which become constants.

    Returns:
        As :func:`~twoheads.export.emit.fused.step.step_model`.
    """
    model = _InPlace(steps, engine, engines, weight).model(engine)
    if model is None:
        return None
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    lean_row(model)
    return model


class _InPlace(StepGraph):
    """The graph under construction."""

    def __init__(
        self, steps: InPlaceSteps, engine: StepEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
    ) -> None:
        super().__init__(steps.steps, engine, engines, weight)
        self._stages, self._rounded = steps.stages, isinstance(steps, RoundedSteps)
        self._total = ""

    def attention(self, stage: AttentionStage) -> None:
        """Appends attention of the row over all keys that are there, which ends in its keys and values in place."""
        if stage.name not in self._stages:
            super().attention(stage)
            return
        graph, engine = self.graph, self.program.engine_of(AttentionEngine, stage.engine)
        heads, width = engine.q_num_heads, engine.head_dim
        rows = [graph.reshape(self.name(stage.query), 1, 1, heads * width)]
        rows += [graph.reshape(self.name(n), 1, 1, engine.kv_num_heads * width) for n in (stage.key, stage.value)]
        numbers = [self.kept[name][0] for name in (stage.key, stage.value)]
        past = [f"past_{at}" for at in numbers]
        if not self._total:
            count = graph.node("Add", PLACE, graph.array("one_row", np.ones(1, np.int32)))
            self._total = graph.reshape(count)
        out = f"{self.name(stage.output.name)}.rows"
        how: dict[str, Any] = {"num_heads": heads, "kv_num_heads": engine.kv_num_heads, "scale": engine.scale}
        made, read = [out, *(NEXT + name for name in past)], [*rows, *past, PLACE, self._total]
        if self._rounded:
            read += [*UNUSED, *(f"{SCALE}{at}" for at in numbers)]
            how |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        graph.nodes.append(onnx.helper.make_node("GroupQueryAttention", read, made, name=out, domain=DOMAIN, **how))
        graph.value_info.append(onnx.helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, [1, 1, heads * width]))
        graph.reshape(out, 1, heads, 1, width, output=self.name(stage.output.name))
