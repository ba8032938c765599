"""A compiled model made by hand, small enough to write down: project, attend to itself, project back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export.bundle import writer as bundle_writer
from twoheads.export.precision import quantise_weights as weight_quantisation
from twoheads.graphs.masks.expressions import Causal, Mask
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    Input,
    Port,
    Program,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.serialization.bundle_format import SourceIdentity

BLOCK, HEADS, DIM = 16, 2, 4
WIDTH = HEADS * DIM

Emitter = Callable[[TokenwiseEngine], onnx.ModelProto]


def use_emitters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the writer call a region, which here is a function, instead of emitting ONNX from FX nodes."""
    for module in (bundle_writer, weight_quantisation):
        monkeypatch.setattr(module, "emit_tokenwise", lambda region, engine: region(engine))


def emit_project(engine: TokenwiseEngine) -> onnx.ModelProto:
    """``x @ weight``, split into heads."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Reshape", ["y", "split"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["heads"], perm=[0, 2, 1, 3]),
    ]
    return _model(engine, nodes, {"split": [1, BLOCK, HEADS, DIM]})


def emit_join(engine: TokenwiseEngine) -> onnx.ModelProto:
    """Heads side by side, ``@ weight``."""
    nodes = [
        helper.make_node("Transpose", ["heads"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "join"], ["y"]),
        helper.make_node("MatMul", ["y", "weight"], ["hidden"]),
    ]
    return _model(engine, nodes, {"join": [1, BLOCK, WIDTH]})


def _model(engine: TokenwiseEngine, nodes: list[onnx.NodeProto], constants: dict[str, list[int]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        engine.name,
        [helper.make_tensor_value_info(p.name, TensorProto.FLOAT, p.shape) for p in (*engine.inputs, *engine.weights)],
        [helper.make_tensor_value_info(p.name, TensorProto.FLOAT, p.shape) for p in engine.outputs],
        [numpy_helper.from_array(np.array(dims, np.int64), name) for name, dims in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def hand_made(*, layers: int = 2, mask: Mask | None = None, seed: int = 0) -> CompiledModel:
    """``layers`` times: ``x -> join(attention(project(x)))``; the last layer's weights are the first's."""
    torch.manual_seed(seed)
    weight = Port("weight", "float32", (WIDTH, WIDTH))
    heads = Port("heads", "float32", (1, HEADS, BLOCK, DIM))
    project = TokenwiseEngine("project", (Port("x", "float32", (1, BLOCK, WIDTH)),), (heads,), (weight,), 1)
    join = TokenwiseEngine("join", (heads,), (Port("hidden", "float32", (1, BLOCK, WIDTH)),), (weight,), 1)
    attend = AttentionEngine("attend", HEADS, HEADS, DIM, DIM, BLOCK, BLOCK, 0.5, 0.0, 1, "float32")
    body: list[Any] = []
    weights: dict[str, torch.Tensor] = {}
    before = "x"
    for layer in range(layers):
        in_name, out_name = f"layers.{layer}.in", f"layers.{layer}.out"
        weights[in_name] = weights["layers.0.in"] if layer == layers - 1 > 0 else torch.randn(WIDTH, WIDTH) / 3
        weights[out_name] = torch.randn(WIDTH, WIDTH).T / 3
        qkv, mixed = f"qkv.{layer}", f"mixed.{layer}"
        after = "hidden" if layer == layers - 1 else f"x.{layer + 1}"
        shape = (1, HEADS, "n", DIM)
        body += [
            TokenwiseStage(f"project.{layer}", "project", (before,), (Value(qkv, "float32", shape),), (in_name,)),
            AttentionStage(
                f"attend.{layer}",
                "attend",
                qkv,
                qkv,
                qkv,
                Value(mixed, "float32", shape),
                mask or Causal(),
                None,
                None,
            ),
            TokenwiseStage(f"join.{layer}", "join", (mixed,), (Value(after, "float32", (1, "n", WIDTH)),), (out_name,)),
        ]
        before = after
    program = Program(
        name="hand-made",
        block_size=BLOCK,
        key_tile=BLOCK,
        inputs=(Input(Value("x", "float32", (1, "n", WIDTH)), "argument", None),),
        engines=(project, attend, join),
        body=tuple(body),
        head=(),
        hidden="hidden",
        logits=None,
        pooling=None,
        max_length=None,
        trained_length=None,
    )
    regions = cast("Any", {"project": emit_project, "join": emit_join})
    identity = SourceIdentity("hand-made", "module", "HandMade", "0" * 64)
    return CompiledModel(program, regions, weights, identity, b'{"version": "1.0"}', "tile", "float32")


def reference(compiled: CompiledModel, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the model computes for ``x [n, width]`` under a causal mask, in float64."""
    state = x.astype(np.float64)
    weights = {name: tensor.double().numpy() for name, tensor in compiled.weights.items()}
    hidden = np.triu(np.ones((len(x), len(x)), bool), 1)
    for layer in range(len(weights) // 2):
        heads = (state @ weights[f"layers.{layer}.in"]).reshape(len(x), HEADS, DIM).swapaxes(0, 1)
        scores = np.where(hidden, -np.inf, 0.5 * heads @ heads.swapaxes(1, 2))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ heads
        state = mixed.swapaxes(0, 1).reshape(len(x), WIDTH) @ weights[f"layers.{layer}.out"]
    return state
