"""Heads that are folded into the token axis are unfolded, where the same comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

FOLDED = helper.make_node("Reshape", ["x", "folded"], ["heads"])
UNFOLDED = helper.make_node("Reshape", ["scaled", "whole"], ["start"])
NORM = [
    helper.make_node("Mul", ["heads", "heads"], ["square"]),
    helper.make_node("ReduceMean", ["square"], ["mean"], axes=[-1], keepdims=1),
    helper.make_node("Div", ["heads", "mean"], ["unit"]),
    helper.make_node("Mul", ["unit", "scale"], ["scaled"]),
]
SHIFTED = [
    helper.make_node("Slice", ["heads", "one", "far", "one"], ["later"]),
    helper.make_node("Concat", ["later", "first"], ["scaled"], axis=1),
]


def file_by_head(path: Path, between: list[Any], **weights: Any) -> Path:
    constants = {"folded": np.array([0, -1, 4]), "whole": np.array([0, -1, 8])}
    return save_model(
        path,
        [FOLDED, *between, UNFOLDED, *attention_nodes("start", "hidden")],
        {**attention_weights(), **constants, **weights},
        {"hidden": ["batch", "tokens", 8]},
    )


def test_a_norm_by_head_is_computed_in_blocks(tmp_path: Path) -> None:
    path = file_by_head(tmp_path / "m.onnx", NORM, scale=np.linspace(1, 2, 4, dtype=np.float32))
    x = np.random.default_rng(0).standard_normal((1, 37, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = np.asarray(session.run(None, {"x": x})[0])[0]
    got = load(write_bundle(compile_model(path, block_size=16), tmp_path / "b", generation=False)).run(x[0]).array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_rows_that_move_from_head_to_head_are_refused(tmp_path: Path) -> None:
    more = {"one": np.array([1]), "far": np.array([1 << 40]), "first": np.zeros((1, 1, 4), np.float32)}
    with pytest.raises(CompileError, match=r"2\*n"):
        compile_model(file_by_head(tmp_path / "m.onnx", SHIFTED, **more))
