"""Activations quantised by their range over all tokens have the scales and codes of ONNX Runtime's operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.dynamic_scales import spell_dynamic_scales
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

Arrays = dict[str, np.ndarray[Any, Any]]

DRAW = np.random.default_rng(0)
WIDE = DRAW.standard_normal((1, 7, 12)).astype(np.float32)
WEIGHTS: Arrays = {
    "w": DRAW.integers(-128, 128, (12, 5)).astype(np.int8),
    "wz": DRAW.integers(-3, 4, 5).astype(np.int8),
    "ws": DRAW.random(5).astype(np.float32),
    "bias": DRAW.standard_normal(5).astype(np.float32),
    "k": DRAW.integers(0, 256, (4, 7, 3)).astype(np.uint8),
    "kz": np.array(131, np.uint8),
}
QUANTISE = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
PRODUCTS: dict[str, list[onnx.NodeProto]] = {
    "codes alone": [QUANTISE, helper.make_node("Cast", ["codes"], ["y"], to=TensorProto.FLOAT)],
    "a scale alone": [QUANTISE, helper.make_node("Identity", ["scale"], ["y"])],
    "a product": [
        QUANTISE,
        helper.make_node("MatMulInteger", ["codes", "w", "zero", "wz"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "ws"], ["scales"]),
        helper.make_node("Mul", ["numbers", "scales"], ["y"]),
    ],
    "a convolution": [
        QUANTISE,
        helper.make_node("ConvInteger", ["codes", "k", "zero", "kz"], ["sums"], pads=[1, 1]),
        helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
    ],
    "a product to float": [
        QUANTISE,
        helper.make_node(
            "MatMulIntegerToFloat", ["codes", "w", "scale", "ws", "zero", "wz", "bias"], ["y"], domain="com.microsoft"
        ),
    ],
    "one operator": [
        helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz", "bias"], ["y"], domain="com.microsoft")
    ],
}
INPUTS = {
    "both signs": WIDE,
    "above zero": np.abs(WIDE) + 1,
    "below zero": -np.abs(WIDE) - 1,
    "nothing but zeros": np.zeros_like(WIDE),
}


def by_runtime(nodes: list[onnx.NodeProto], x: np.ndarray[Any, Any], opset: int) -> np.ndarray[Any, Any]:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "some",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in read],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def spelled(nodes: list[onnx.NodeProto], *shape: int | str, opset: int = 17) -> OnnxGraph:
    graph = OnnxGraph({"": opset, "com.microsoft": 1}, tuple(map(OnnxNode, nodes)), WEIGHTS)
    return spell_dynamic_scales(graph, {"x": TensorType("float32", shape)})


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("opset", [17, 18])
def test_what_is_written_out_is_the_operator(name: str, given: str, opset: int) -> None:
    x = INPUTS[given]
    if name == "one operator" and not x.any():
        pytest.skip("this operator of ONNX Runtime divides by a range of 0 there")
    graph = spelled(PRODUCTS[name], 1, "n", 12, opset=opset)
    found = graph.run(["y"], {"x": x}, {})["y"]
    want = by_runtime(PRODUCTS[name], x, opset)
    assert not {node.proto.op_type for node in graph.nodes} & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    if "alone" in name:
        np.testing.assert_array_equal(found.reshape(want.shape), want)
    np.testing.assert_allclose(found.reshape(want.shape), want, rtol=0, atol=1e-6 * max(abs(want).max(), 1e-9))


def test_scores_of_pairs_of_tokens_have_no_common_range() -> None:
    with pytest.raises(CompileError, match="a number for every pair of tokens, by their common range"):
        spelled(PRODUCTS["codes alone"], 1, "n", "n")
