"""A step of a few rows that writes keys and values in place; see :mod:`twoheads.graphs.variants.in_place`.

The operator multiplies every query head with its keys for itself. Of a single row the heads that share keys are given
to it as rows of one head instead, all of which see the keys up to the first of them: so keys are read once.
"""

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
from twoheads.graphs.variants.steps import HIDDEN, StepEngine, folded_rows

__all__ = ["BIAS", "HIDDEN_ROWS", "UNUSED", "in_place_model"]

HIDDEN_ROWS = "hidden_rows"
"""What the names of values begin with whose size is told by the sequence's length, and by no shape."""

UNUSED = ("",) * 5
"""Inputs of the operator between lengths and scales: rotary positions, a bias and sinks."""

BIAS = 3
"""Those before the bias."""


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
        self._lengths: dict[int, tuple[str, str]] = {}
        self._hiding: dict[int, str] = {}

    def attention(self, stage: AttentionStage) -> None:
        """Appends attention of the rows over all keys that are there, which end in theirs, and puts these in place."""
        if stage.name not in self._stages:
            super().attention(stage)
            return
        graph, engine = self.graph, self.program.engine_of(AttentionEngine, stage.engine)
        heads, width = engine.q_num_heads, engine.head_dim
        fold = folded_rows(engine) if self._rows == 1 and not self._rounded else 1
        rows = [self._query(stage.query, engine, fold)]
        rows += [self._new_row(name, engine, fold) for name in (stage.key, stage.value)]
        numbers = [self.kept[name][0] for name in (stage.key, stage.value)]
        past = [f"past_{at}" for at in numbers]
        out, count = f"{self.name(stage.output.name)}.rows", self._rows * fold
        how: dict[str, Any] = {"num_heads": heads // fold, "kv_num_heads": engine.kv_num_heads, "scale": engine.scale}
        made, read = [out, *(NEXT + name for name in past)], [*rows, *past, *self._places(count)]
        if fold > 1:
            read += [*UNUSED[:BIAS], self._hidden_rows(fold)]
        if self._rounded:
            read += [*UNUSED, *(f"{SCALE}{at}" for at in numbers)]
            how |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        graph.nodes.append(onnx.helper.make_node("GroupQueryAttention", read, made, name=out, domain=DOMAIN, **how))
        shape = [1, count, heads // fold * width]
        graph.value_info.append(onnx.helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, shape))
        by_head = graph.reshape(out, 1, count, heads // fold, width)
        by_head = graph.node("Transpose", by_head, perm=[0, 2, 1, 3])
        graph.reshape(by_head, 1, heads, self._rows, width, output=self.name(stage.output.name))

    def _query(self, value: str, engine: AttentionEngine, fold: int) -> str:
        """``[1, heads, rows, width]`` as the operator reads it: ``[1, rows, heads * width]``, heads as rows if so."""
        heads, count = engine.q_num_heads // fold, self._rows * fold
        name = self.graph.reshape(self.name(value), 1, heads, count, engine.head_dim)
        name = self.graph.node("Transpose", name, perm=[0, 2, 1, 3])
        return self.graph.reshape(name, 1, count, heads * engine.head_dim)

    def _new_row(self, value: str, engine: AttentionEngine, fold: int) -> str:
        """Likewise keys or values, each row ``fold`` times: all but the first are nobody's."""
        name = self.graph.node("Transpose", self.name(value), perm=[0, 2, 1, 3])
        row = self.graph.reshape(name, 1, self._rows, engine.kv_num_heads * engine.head_dim)
        return row if fold == 1 else self.graph.node("Concat", *[row] * fold, axis=1)

    def _places(self, count: int) -> tuple[str, str]:
        """Where the last of so many rows is written, and how many keys there are then, made once."""
        if count not in self._lengths:
            graph, last = self.graph, PLACE
            if count > 1:
                behind = graph.array(f"rows_behind_{count}", np.full(1, count - 1, np.int32))
                last = graph.node("Add", PLACE, behind)
            there = graph.node("Add", last, graph.array("one_row", np.ones(1, np.int32)))
            self._lengths[count] = last, graph.reshape(there)
        return self._lengths[count]

    def _hidden_rows(self, fold: int) -> str:
        """What is added to the scores, ``[1, 1, fold, keys]``, so that rows behind the first are not seen; made once.

        The operator takes exactly as many columns as there are keys: the one array here whose size no shape tells.
        """
        if fold not in self._hiding:
            graph, room = self.graph, self._capacity * self._block
            row = np.array([0.0] * room + [HIDDEN] * (fold - 1), np.float32).reshape(1, 1, 1, -1)
            before = graph.node("Sub", graph.array("last_place", np.full(1, room - 1, np.int32)), PLACE)
            whole, last = graph.array(f"rows_behind_{fold}_hidden", row), graph.constant([room + fold])
            axis = graph.constant([-1])
            start = graph.node("Cast", before, to=onnx.TensorProto.INT64)
            cut = graph.node("Slice", whole, start, last, axis, output=f"{HIDDEN_ROWS}_{fold}_cut")
            self._hiding[fold] = graph.node("Concat", *[cut] * fold, axis=2, output=f"{HIDDEN_ROWS}_{fold}")
        return self._hiding[fold]
