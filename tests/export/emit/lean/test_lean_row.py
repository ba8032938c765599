"""An engine of one row keeps what it computes, by fewer operators; forms that differ are left as they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper, numpy_helper

from tests.runtime.generation.decoders import bundle_folder
from twoheads.export.emit.lean.lean_row import lean_row

HEADS, WIDTH = 3, 16
INNER = HEADS * WIDTH

FLOAT = onnx.TensorProto.FLOAT


def _layer(crossed: str = "Neg", other: str = "angle", power: float = 2.0) -> onnx.ModelProto:
    """A sum, its norm, a product, heads that are turned, and their rows again."""
    rng = np.random.default_rng(0)
    constants: dict[str, npt.NDArray[Any]] = {
        "weight": rng.standard_normal((INNER, INNER)).astype(np.float32) / 8,
        "gain": rng.standard_normal(INNER).astype(np.float32),
        "two": np.array(power, np.float32),
        "epsilon": np.array(1e-5, np.float32),
        "last": np.array([-1]),
        "flat": np.array([1, INNER]),
        "heads": np.array([1, 1, HEADS, WIDTH]),
        "rows": np.array([1, 1, INNER]),
        "ones": np.array([1]),
        "zero": np.array([0]),
        "half": np.array([WIDTH // 2]),
        "end": np.array([2**62]),
        "other": rng.standard_normal((1, 1, WIDTH // 2)).astype(np.float32),
    }
    lines: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Add", ["a", "b"], "x", {}),
        ("Pow", ["x", "two"], "squares", {}),
        ("ReduceMean", ["squares", "last"], "mean", {"keepdims": 1}),
        ("Add", ["mean", "epsilon"], "above", {}),
        ("Sqrt", ["above"], "root", {}),
        ("Reciprocal", ["root"], "factor", {}),
        ("Mul", ["x", "factor"], "even", {}),
        ("Mul", ["gain", "even"], "normed", {}),
        ("Reshape", ["normed", "flat"], "row", {}),
        ("Gemm", ["row", "weight"], "product", {"transB": 1}),
        ("Reshape", ["product", "heads"], "shaped", {}),
        ("Transpose", ["shaped"], "q", {"perm": [0, 2, 1, 3]}),
        ("Concat", ["angle", other], "angles", {"axis": -1}),
        ("Cos", ["angles"], "cos", {}),
        ("Sin", ["angles"], "sin", {}),
        ("Unsqueeze", ["cos", "ones"], "cosine", {}),
        ("Unsqueeze", ["sin", "ones"], "sine", {}),
        ("Mul", ["q", "cosine"], "straight", {}),
        ("Slice", ["q", "zero", "half", "last"], "first", {}),
        ("Slice", ["q", "half", "end", "last"], "second", {}),
        (crossed, ["second"], "negated", {}),
        ("Concat", ["negated", "first"], "crossing", {"axis": -1}),
        ("Mul", ["crossing", "sine"], "across", {}),
        ("Add", ["straight", "across"], "turned", {}),
        ("Transpose", ["turned"], "back", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["back", "rows"], "joined", {}),
        ("Sigmoid", ["joined"], "gate", {}),
        ("Mul", ["joined", "gate"], "gated", {}),
        ("Add", ["x", "gated"], "out", {}),
    )
    nodes = [helper.make_node(kind, given, [made], name=made, **how) for kind, given, made, how in lines]
    inputs = {"a": (1, 1, INNER), "b": (1, 1, INNER), "angle": (1, 1, WIDTH // 2)}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", FLOAT, (1, 1, INNER))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _run(model: onnx.ModelProto) -> npt.NDArray[Any]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in session.get_inputs()}
    made: Any = session.run(None, feeds)[0]
    return np.asarray(made)


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_a_layer_computes_the_same_by_fewer_operators():
    model = _layer()
    expected = _run(model)
    lean_row(model)
    np.testing.assert_allclose(_run(model), expected, rtol=1e-5, atol=1e-5)
    kinds = _kinds(model)
    assert kinds["SkipSimplifiedLayerNormalization"] == kinds["RotaryEmbedding"] == 1
    assert not kinds.keys() & {"Transpose", "Pow", "Reciprocal", "Neg"}
    assert len(model.graph.node) < 20 < len(_layer().graph.node)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"crossed": "Abs"}, "Abs"),
        ({"other": "other"}, "Neg"),
        ({"power": 4.0}, "Reciprocal"),
    ],
)
def test_what_only_looks_alike_stays(changes, kept):
    model = _layer(**changes)
    expected = _run(model)
    lean_row(model)
    assert _kinds(model)[kept] == 1
    np.testing.assert_allclose(_run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "in_place", "skips"), [("llama", 3, 6), ("gemma", 1, 0)])
def test_a_step_has_one_operator_for_what_is_one(name, in_place, skips):
    engines = bundle_folder(name) / "engines"
    kinds = _kinds(onnx.load(engines / "step_in_place_2.onnx", load_external_data=False))
    usual = _kinds(onnx.load(engines / "step_1_2.onnx", load_external_data=False))
    assert kinds["GroupQueryAttention"] == in_place
    assert kinds["RotaryEmbedding"] == 6
    assert kinds["SkipSimplifiedLayerNormalization"] >= skips
    assert not kinds["Reciprocal"]
    assert kinds.total() < 0.7 * usual.total()
