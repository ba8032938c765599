"""What a mask holds where every token counts is found by leaving tokens out, whichever way a file means its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.onnx.bind_inputs import bind_inputs
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    **attention_weights(),
    "far": np.array(-1e9, np.float32),
    "one": np.array(1, np.float32),
    "row": np.array([1, 1, -1]),
}

ROW = helper.make_node("Reshape", ["attention_mask", "row"], ["m"])
FROM_ONE = [
    ROW,
    helper.make_node("Cast", ["m"], ["number"], to=TensorProto.FLOAT),
    helper.make_node("Sub", ["one", "number"], ["missing"]),
    helper.make_node("Mul", ["missing", "far"], ["hidden_by"]),
    helper.make_node("Add", ["scores", "hidden_by"], ["masked"]),
]
ADDED = [ROW, helper.make_node("Add", ["scores", "m"], ["masked"])]
KEPT = [ROW, helper.make_node("Where", ["m", "scores", "far"], ["masked"])]
LEFT_OUT = [ROW, helper.make_node("Where", ["m", "far", "scores"], ["masked"])]

MASKS: dict[str, tuple[int, list[str | int], list[onnx.NodeProto], Any]] = {
    "added to the scores": (TensorProto.FLOAT, ["b", 1, 1, "t"], ADDED, 0),
    "true for a token, four dimensions": (TensorProto.BOOL, ["b", 1, 1, "t"], KEPT, 1),
    "true for what is left out": (TensorProto.BOOL, ["b", "t"], LEFT_OUT, 0),
    "one for a token, floats": (TensorProto.FLOAT, ["b", "t"], FROM_ONE, 1),
    "one for a token, four dimensions": (TensorProto.INT64, ["b", 1, 1, "t"], FROM_ONE, 1),
}


def masked_file(path: Path, element: int, shape: list[str | int], nodes: list[onnx.NodeProto]) -> Path:
    whole = attention_nodes("x", "hidden")
    softmax = helper.make_node("Softmax", ["masked"], ["probabilities"], axis=-1)
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, ["b", "t", 8]), "attention_mask": (element, shape)}
    read = {name for node in (*whole, *nodes) for name in node.input}
    weights = {name: array for name, array in WEIGHTS.items() if name in read}
    return save_model(
        path, [*whole[:5], *nodes, softmax, *whole[6:]], weights, {"hidden": ["b", "t", 8]}, inputs=inputs
    )


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_says_that_every_token_counts(name: str, tmp_path: Path) -> None:
    element, shape, nodes, counts = MASKS[name]
    path = masked_file(tmp_path / "m.onnx", element, shape, nodes)
    ours = load(write_bundle(compile_model(path, block_size=16), tmp_path / "bundle", generation=False))
    x = np.random.default_rng(0).standard_normal((1, 37, 8)).astype(np.float32)
    sizes = [37 if size == "t" else 1 for size in shape]
    mask = np.full(sizes, counts, helper.tensor_dtype_to_np_dtype(element))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = np.asarray(session.run(None, {"x": x, "attention_mask": mask})[0])[0]
    got = ours.run(x[0]).array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_mask_that_leaves_no_token_out_is_refused(tmp_path: Path) -> None:
    nothing = [ROW, helper.make_node("Mul", ["scores", "one"], ["masked"])]
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, ["b", 1, 1, "t"], nothing)
    assert bind_inputs(read_onnx(path)).masks["attention_mask"].values == (1, 0)  # unread: any value does
    scaled = [ROW, helper.make_node("Mul", ["scores", "m"], ["masked"])]
    path = masked_file(tmp_path / "m.onnx", TensorProto.FLOAT, ["b", 1, 1, "t"], scaled)
    with pytest.raises(CompileError, match="no entry of it leaves a token out"):
        bind_inputs(read_onnx(path))
