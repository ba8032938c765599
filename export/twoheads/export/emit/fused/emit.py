"""The ONNX file of an engine that a lowering holds beside those of the tile program, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from twoheads.export.emit.fused.model import model_step_model
from twoheads.export.emit.fused.window import window_model
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.fused import FusedEngine, ModelEngine, WindowEngine
from twoheads.graphs.program.program import Program
from twoheads.graphs.variants.model_steps import model_stage

__all__ = ["fused_model"]


def fused_model(
    program: Program, steps: Program, engine: FusedEngine, engines: Mapping[str, onnx.ModelProto]
) -> onnx.ModelProto:
    """``engine`` of the program ``steps``, which is derived from ``program``; weights are inputs, as in ``engines``.

    Raises:
        CompileError: The graphs of ``engines`` can't be joined.
    """
    if isinstance(engine, WindowEngine):
        return window_model(program, engine, engines)
    stage = model_stage(steps)
    if stage is None or not isinstance(engine, ModelEngine):
        raise InternalError(f"program {steps.name} does not say how the engine {engine.name} is made")
    return model_step_model(program, stage, engine, engines)
