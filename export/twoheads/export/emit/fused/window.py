"""Windowed attention and the region behind it as one ONNX file; see :mod:`twoheads.graphs.variants.window_steps`.

The keys of all tiles that a block's window can touch are joined and attended to at once: one Softmax, no log-sum-exp
and no merge. The region's graph is that of its own engine, joined to it by its ports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from twoheads.export.emit.graph_builder import GraphBuilder, common_opsets
from twoheads.export.emit.tile_attention import IR_VERSION, OPSET, softmax_attention
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.fused import WindowEngine
from twoheads.graphs.program.program import AttentionEngine, Program, TokenwiseEngine
from twoheads.graphs.variants.window_steps import MASK

__all__ = ["window_model"]


def window_model(program: Program, engine: WindowEngine, engines: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The engine as a fixed-shape ONNX model.

    Args:
        program: The tile program that declares the two engines it stands for.
        engine: What to make.
        engines: The models of token-wise engines by name, their weights being inputs.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name.

    Raises:
        InternalError: The program has no such engines, or the region's graph can't be joined to another.
    """
    attention, region = program.engine(engine.attention), program.engine(engine.region)
    model = engines[engine.region]
    opsets = common_opsets([model], OPSET)
    if not isinstance(attention, AttentionEngine) or not isinstance(region, TokenwiseEngine) or opsets is None:
        raise InternalError(f"engine {engine.name} can't be made of {engine.attention} and {engine.region}")
    graph = GraphBuilder()
    tiles = sum(port.name.startswith("attention.k_") for port in engine.inputs)
    wide = replace(attention, key_tile=tiles * attention.key_tile)
    k, v = (_joined(graph, name, tiles) for name in ("k", "v"))
    out = softmax_attention(graph, wide, "attention.q", k, v, mask=MASK)
    names = {port.name: port.name for port in (*region.inputs, *region.outputs, *region.weights)}
    names[region.inputs[engine.attended].name] = out
    graph.join(model.graph, "region", names)
    ir_version = max(IR_VERSION, model.ir_version)
    return graph.model(engine.name, (*engine.inputs, *engine.weights), engine.outputs, opsets, ir_version)


def _joined(graph: GraphBuilder, name: str, tiles: int) -> str:
    names = [f"attention.{name}_{at}" for at in range(tiles)]
    return graph.node("Concat", *names, axis=2) if tiles > 1 else names[0]
