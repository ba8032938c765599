"""Files for a fixed batch are read as files for one input, and the file itself proves it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

BATCH = 3
LENGTH = 37


def batched_file(path: Path, *, tokens: int | str = "t", before: list[Any] | None = None, **weights: Any) -> Path:
    """Attention behind operators that hold the batch: shapes, a row of a table for every input, a spread mask."""
    made = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "second"], ["count"]),
        helper.make_node("Concat", ["three", "count", "two_four"], ["split"], axis=0),
        helper.make_node("Reshape", ["x", "split"], ["halves"]),
        helper.make_node("Reshape", ["halves", "flat"], ["joined"]),
        helper.make_node("Concat", ["three", "count", "eight"], ["wide"], axis=0),
        helper.make_node("Expand", ["bias", "wide"], ["spread"]),
        helper.make_node("Add", ["joined", "spread"], ["moved"]),
        helper.make_node("Add", ["moved", "rows"], ["start"]),
    ]
    whole = attention_nodes("start", "hidden")
    one, mask = (
        helper.make_node("Unsqueeze", ["mask", "second"], ["m"]),
        helper.make_node("Cast", ["m"], ["keep"], to=9),
    )
    masked = helper.make_node("Where", ["keep", "scores", "far"], ["masked"])
    softmax = helper.make_node("Softmax", ["masked"], ["probabilities"], axis=-1)
    constants: dict[str, Any] = {
        "second": np.array([1]), "three": np.array([BATCH]), "two_four": np.array([2, 4]), "eight": np.array([8]),
        "flat": np.array([BATCH, -1, 8]), "far": np.array(-1e9, np.float32),
        "bias": np.linspace(0, 1, 8, dtype=np.float32),
        "rows": np.broadcast_to(np.linspace(1, 2, 8, dtype=np.float32), (BATCH, 1, 8)).copy(),
    }  # fmt: skip
    given = {name for node in before or () for name in node.output}
    return save_model(
        path,
        [*(before or []), *made, *whole[:5], one, mask, masked, softmax, *whole[6:]],
        {name: array for name, array in {**attention_weights(), **constants, **weights}.items() if name not in given},
        {"hidden": [BATCH, tokens, 8]},
        inputs={"x": (TensorProto.FLOAT, [BATCH, tokens, 8]), "mask": (TensorProto.INT64, [BATCH, tokens])},
    )


def test_each_input_of_a_batch_is_one_of_its_own(tmp_path: Path) -> None:
    path = batched_file(tmp_path / "m.onnx")
    compiled = compile_model(path, block_size=16)
    bundle = write_bundle(compiled, tmp_path / "b", generation=False)
    x = np.random.default_rng(0).standard_normal((BATCH, LENGTH, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = np.asarray(session.run(None, {"x": x, "mask": np.ones((BATCH, LENGTH), np.int64)})[0])
    ours = load(bundle)
    for at in range(BATCH):
        got = ours.run(x[at]).array
        assert got is not None
        np.testing.assert_allclose(got, want[at], rtol=0, atol=2e-6 * np.abs(want).max())
    assert verify(bundle, path, length=LENGTH).passed
    name = next(name for name in compiled.weights if name.startswith("rows"))  # of the batch's first row
    wrong = (1.001 * compiled.weights[name]).astype(np.float32)
    other = write_bundle(replace(compiled, weights={**compiled.weights, name: wrong}), tmp_path / "o", generation=False)
    assert not verify(other, path, length=LENGTH).passed


def test_inputs_that_meet_in_a_batch_are_refused(tmp_path: Path) -> None:
    meeting = np.random.default_rng(0).standard_normal((BATCH, 1, 8)).astype(np.float32)
    with pytest.raises(CompileError, match=r"fixed batch of 3 is not, in row 1, what that row's input alone makes"):
        compile_model(batched_file(tmp_path / "m.onnx", rows=meeting))


def test_a_row_that_differs_by_a_thousandth_is_refused(tmp_path: Path) -> None:
    rows = np.broadcast_to(np.linspace(1, 2, 8, dtype=np.float32), (BATCH, 1, 8)).copy()
    rows[2] *= 1.001
    with pytest.raises(CompileError, match=r"fixed batch of 3 is not, in row 2, what that row's input alone makes"):
        compile_model(batched_file(tmp_path / "m.onnx", rows=rows))


def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    before = [
        helper.make_node("Gather", ["x", "order"], ["x_again"], axis=0),
        helper.make_node("ReduceMean", ["x_again"], ["rows"], axes=[1], keepdims=1),
    ]
    path = batched_file(tmp_path / "m.onnx", before=before, order=np.array([0, 2, 1]))
    with pytest.raises(CompileError, match=r"Gather .*fixed batch of 3"):
        compile_model(path)


def test_an_operator_that_mixes_the_batch_is_refused_by_name(tmp_path: Path) -> None:
    parts = [f"part_{at}" for at in range(BATCH)]
    before = [
        helper.make_node("Split", ["x", "ones"], parts, axis=0),
        helper.make_node("Concat", parts, ["x_again"], axis=0),
        helper.make_node("ReduceMean", ["x_again"], ["rows"], axes=[1], keepdims=1),
    ]
    path = batched_file(tmp_path / "m.onnx", before=before, ones=np.ones(BATCH, np.int64))
    with pytest.raises(CompileError, match=r"part_0.*Split does not run at another batch.*fixed batch of 3"):
        compile_model(path)


def test_inputs_of_different_batches_are_refused(tmp_path: Path) -> None:
    nodes = attention_nodes("x", "hidden")
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, [3, "t", 8]), "y": (TensorProto.FLOAT, [2, "t", 8])}
    path = save_model(tmp_path / "m.onnx", nodes, attention_weights(), {"hidden": [3, "t", 8]}, inputs=inputs)
    with pytest.raises(CompileError, match=r"fixed batch of 3 \(x \[3, 't', 8\], y \[2, 't', 8\]\)"):
        compile_model(path)
