"""Row movement in hand-made ONNX files: added rows, taken rows, reductions over tokens, compiled and run at lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.frontend.onnx.capture import capture_onnx
from twoheads.compiler.ir.source_graph import SequenceNode
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.printer import print_program
from twoheads.runtime import load

BLOCK = 16

WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    **attention_weights(),
    "row": np.random.default_rng(1).standard_normal((1, 1, 8)).astype(np.float32),
    "head": np.random.default_rng(2).standard_normal((8, 3)).astype(np.float32),
    "first": np.array(0),
    "last": np.array(-1),
    "from": np.array([1]),
    "end": np.array([1 << 40]),
    "axis": np.array([1]),
}

BEFORE = {
    "a row before all others": [helper.make_node("Concat", ["row", "x"], ["y"], axis=1)],
    "without the first row": [helper.make_node("Slice", ["x", "from", "end", "axis"], ["y"])],
}

AFTER = {
    "the first row": [helper.make_node("Gather", ["attended_x", "first"], ["pooled"], axis=1)],
    "the last row": [helper.make_node("Gather", ["attended_x", "last"], ["pooled"], axis=1)],
    "the mean": [helper.make_node("ReduceMean", ["attended_x"], ["pooled"], axes=[1], keepdims=0)],
    "the largest": [helper.make_node("ReduceMax", ["attended_x"], ["pooled"], axes=[1], keepdims=0)],
    "a number of rows": [
        helper.make_node("ReduceSum", ["attended_x", "axis"], ["total"], keepdims=0),
        helper.make_node("Shape", ["attended_x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "axis"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=1),
        helper.make_node("Div", ["total", "number"], ["pooled"]),
    ],
}


def _agree(tmp_path, nodes, outputs, rows, weights=None):
    path = save_model(tmp_path / "m.onnx", nodes, WEIGHTS | (weights or {}), outputs)
    ours = load(write_bundle(compile_model(path, block_size=BLOCK), tmp_path / "bundle", generation=False))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for length in (2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5):
        x = np.random.default_rng(length).standard_normal((1, length, 8)).astype(np.float32)
        expected = np.asarray(session.run(None, {"x": x})[0])
        result = ours.run(x[0])
        got = result.array
        assert got is not None
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        assert expected.size == got.size
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    moved = {node.operator for node in capture_onnx(path).graph.nodes if isinstance(node, SequenceNode)}
    assert moved == rows


@pytest.mark.parametrize(
    ("name", "operator"), [("a row before all others", "concat"), ("without the first row", "take")]
)
def test_rows_are_added_and_left_out_before_attention(tmp_path, name, operator):
    nodes = [*BEFORE[name], *attention_nodes("y", "hidden")]
    _agree(tmp_path, nodes, {"hidden": ["batch", "rows", 8]}, {operator})


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("the first row", "take"),
        ("the last row", "take"),
        ("the mean", "mean"),
        ("the largest", "max"),
        ("a number of rows", "sum"),
    ],
)
def test_one_row_is_made_of_all_after_attention(tmp_path, name, operator):
    nodes = [*attention_nodes("x", "attended_x"), *AFTER[name], helper.make_node("MatMul", ["pooled", "head"], ["out"])]
    _agree(tmp_path, nodes, {"out": ["batch", 3]}, {operator})


DRAW = np.random.default_rng(5)
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((8, 8, 3), {"pads": [1, 1]}),
    "causal and dilated": ((8, 8, 3), {"pads": [4, 0], "dilations": [2]}),
    "strided, of each channel": ((8, 1, 4), {"pads": [3, 3], "strides": [2], "group": 8}),
    "of two groups": ((8, 4, 5), {"pads": [2, 2], "group": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_along_tokens(tmp_path, name):
    shape, attributes = CONVOLUTIONS[name]
    kernel = DRAW.standard_normal(shape).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "kernel"], ["convolved"], **attributes),
        helper.make_node("Transpose", ["convolved"], ["y"], perm=[0, 2, 1]),
        *attention_nodes("y", "hidden"),
    ]
    _agree(tmp_path, nodes, {"hidden": ["batch", "rows", 8]}, {"take"}, {"kernel": kernel})


def test_a_convolution_of_frames_and_bins(tmp_path):
    """Eight bins become four; frames are convolved and halved with them, by four channels."""
    weights = {
        "image": DRAW.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "narrow": DRAW.standard_normal((16, 8)).astype(np.float32) / 4,
        "flat": np.array([1, -1, 16]),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["one"]),
        helper.make_node("Conv", ["one", "image"], ["convolved"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Transpose", ["convolved"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", "flat"], ["wide"]),
        helper.make_node("MatMul", ["wide", "narrow"], ["y"]),
        *attention_nodes("y", "hidden"),
    ]
    _agree(tmp_path, nodes, {"hidden": ["batch", "rows", 8]}, {"take"}, weights)


def test_sums_over_tokens_are_refused_by_name_and_work_within_a_token_is_not(tmp_path):
    sort = helper.make_node("TopK", ["x", "from"], ["y", "places"], axis=2)
    turned = helper.make_node("CumSum", ["x", "one_axis"], ["y"])
    for mixing in (turned, sort):
        weights = {**WEIGHTS, "one_axis": np.array(1)}
        nodes = [mixing, helper.make_node("Add", ["x", "y"], ["z"]), *attention_nodes("z", "hidden")]
        path = save_model(tmp_path / "m.onnx", nodes, weights, {"hidden": ["batch", "tokens", 8]})
        if mixing is sort:
            compile_model(path, block_size=BLOCK)  # within a row, every token on its own
        else:
            with pytest.raises(CompileError, match="mixes tokens: CumSum"):
                compile_model(path, block_size=BLOCK)


def test_results_may_be_chosen_by_name(tmp_path):
    nodes = [
        *attention_nodes("x", "one"),
        helper.make_node("Neg", ["one"], ["two"]),
        helper.make_node("MatMul", ["two", "head"], ["three"]),
    ]
    outputs: dict[str, list[int | str | None]] = {
        "one": ["batch", "tokens", 8],
        "two": ["batch", "tokens", 8],
        "three": ["batch", "tokens", 3],
    }
    path = save_model(tmp_path / "m.onnx", nodes, WEIGHTS, outputs)
    chosen = capture_onnx(path, ("two", "three")).graph
    assert (chosen.hidden, chosen.logits) == ("two", "three")
    bundle = write_bundle(
        compile_model(path, block_size=BLOCK, results=("two", "three")), tmp_path / "bundle", generation=False
    )
    assert verify(bundle, path, length=20, results=("two", "three")).passed
    assert print_program(plan_model(path, block_size=BLOCK, results=("two", "three"))) == print_program(
        load(bundle).program
    )
    with pytest.raises(CompileError, match="no output 'four'"):
        capture_onnx(path, ("four",))
