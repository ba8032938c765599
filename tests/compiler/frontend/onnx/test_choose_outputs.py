"""Which results of a file are its hidden states and its logits, and files that only go on with a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.onnx.capture import capture_onnx
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError

WEIGHTS: dict[str, Any] = {
    **attention_weights(),
    "head": np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32),
    "last": np.array([2]),
}


def test_start_and_end_of_an_answer_are_two_columns_of_logits(tmp_path: Path) -> None:
    nodes = [
        *attention_nodes("x", "rows"),
        helper.make_node("MatMul", ["rows", "head"], ["both"]),
        helper.make_node("Split", ["both"], ["start", "end"], axis=2),
        helper.make_node("Squeeze", ["start", "last"], ["start_logits"]),
        helper.make_node("Squeeze", ["end", "last"], ["end_logits"]),
    ]
    outputs = {"start_logits": ["b", "t"], "end_logits": ["b", "t"]}
    path = save_model(tmp_path / "m.onnx", nodes, WEIGHTS, outputs)
    graph = capture_onnx(path).graph
    assert (graph.hidden, graph.logits) == ("rows", "both")
    bundle = write_bundle(compile_model(path, block_size=16), tmp_path / "b", generation=False)
    assert verify(bundle, path, length=37).passed


def test_the_half_of_a_decoder_that_goes_on_is_refused(tmp_path: Path) -> None:
    nodes = attention_nodes("x", "hidden")
    nodes[3] = helper.make_node("Transpose", ["past_key_values.0.encoder.key"], ["kt"], perm=[0, 2, 1])
    inputs: dict[str, Any] = {
        "x": (TensorProto.FLOAT, ["b", "t", 8]),
        "past_key_values.0.encoder.key": (TensorProto.FLOAT, ["b", "m", 8]),
    }
    weights = {name: array for name, array in attention_weights().items() if name != "k"}
    path = save_model(tmp_path / "m.onnx", nodes, weights, {"hidden": ["b", "t", 8]}, inputs=inputs)
    with pytest.raises(CompileError, match=r"goes on with a sequence and can't begin one.*\n.*decoder_model"):
        compile_model(path)
