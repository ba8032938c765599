"""Weights of few bits stand for what ONNX Runtime's own operators compute with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.dequantise import dequantise, exact_activations
from twoheads.graphs.errors import CompileError

BLOCK = 16

Arrays = dict[str, np.ndarray[Any, Any]]


def by_runtime(node: Any, weights: Arrays, feeds: Arrays) -> np.ndarray[Any, Any]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [output], held), opset_imports=opsets, ir_version=8
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def graph_of(node: Any, weights: Arrays) -> OnnxGraph:
    return OnnxGraph({"": 17, "com.microsoft": 1}, (OnnxNode(node),), weights)


@pytest.mark.parametrize(("bits", "zeros"), [(4, ""), (4, "bytes"), (4, "floats"), (8, ""), (8, "bytes"), (2, "")])
def test_a_product_with_packed_weights(bits: int, zeros: str) -> None:
    draw = np.random.default_rng(bits)
    rows, width, blocks = 6, 40, 3
    weights: Arrays = {
        "w": draw.integers(0, 256, (rows, blocks, BLOCK * bits // 8)).astype(np.uint8),
        "s": draw.random(rows * blocks).astype(np.float32),
        "z": draw.integers(0, 256, rows * -(-blocks * bits // 8)).astype(np.uint8),
    }
    if zeros == "floats":
        weights["z"] = (draw.random(rows * blocks) * 15).astype(np.float32)
    operands = ["x", "w", "s", *(["z"] if zeros else [])]
    node = helper.make_node(
        "MatMulNBits", operands, ["y"], domain="com.microsoft", K=width, N=rows, bits=bits, block_size=BLOCK
    )
    x = draw.standard_normal((1, 5, width)).astype(np.float32)
    held = {name: array for name, array in weights.items() if name in operands}
    want = by_runtime(exact_activations(node), held, {"x": x})
    found = dequantise(graph_of(node, weights)).run(["y"], {"x": x}, {})["y"]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * abs(want).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_look_up_in_a_packed_table(bits: int, zeros: bool) -> None:
    draw = np.random.default_rng(bits)
    rows, width = 10, 64
    weights: Arrays = {
        "w": draw.integers(0, 256, (rows, width * bits // 8)).astype(np.uint8),
        "s": draw.random((rows, width // BLOCK)).astype(np.float32),
        "z": draw.integers(0, 256, (rows, width // BLOCK * bits // 8)).astype(np.uint8),
    }
    operands = ["w", "i", "s", *(["z"] if zeros else [])]
    node = helper.make_node(
        "GatherBlockQuantized", operands, ["y"], domain="com.microsoft", bits=bits, block_size=BLOCK, quantize_axis=1
    )
    given: Arrays = {"i": np.array([[1, 4, 9]])}
    held = {name: array for name, array in weights.items() if name in operands}
    want = by_runtime(node, held, given)
    np.testing.assert_array_equal(dequantise(graph_of(node, weights)).run(["y"], given, {})["y"], want)


@pytest.mark.parametrize(("change", "message"), [
    ({"w": None}, "computes its operand 1, which must be a constant"),
    ({"bits": 3}, "weights of 3 bits"),
    ({"w": np.zeros((6, 1, 8), np.uint8)}, "holds 16 numbers a row where 48 are needed"),
    ({"g": np.zeros(40, np.int32)}, "an order of its own"),
])  # fmt: skip
def test_what_is_not_understood_is_refused(change: dict[str, Any], message: str) -> None:
    weights: Arrays = {"w": np.zeros((6, 3, 8), np.uint8), "s": np.ones(18, np.float32)}
    weights |= {name: array for name, array in change.items() if isinstance(array, np.ndarray)}
    weights = {name: array for name, array in weights.items() if change.get(name, array) is not None}
    operands = ["x", "w", "s", *(["", "g"] if "g" in change else [])]
    node = helper.make_node(
        "MatMulNBits", operands, ["y"], domain="com.microsoft", K=40, N=6, bits=change.get("bits", 4), block_size=BLOCK
    )
    with pytest.raises(CompileError, match=message):
        dequantise(graph_of(node, weights))
