"""Exponents are clipped where a chip's exponential is wrong, and nothing else is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.rewrites.bound_exponents import bound_exponents
from twoheads.export.accelerators.target import load_target

BOUND = 60.0


def model(*operators: str) -> onnx.ModelProto:
    """``x [8]`` through each operator, an output each."""
    port = helper.make_tensor_value_info
    nodes = [helper.make_node(operator, ["x"], [operator.lower()]) for operator in operators]
    made = [port(operator.lower(), TensorProto.FLOAT, [8]) for operator in operators]
    graph = helper.make_graph(nodes, "g", [port("x", TensorProto.FLOAT, [8])], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def values(given: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x.astype(np.float32)})]


def test_numbers_of_half_precision_stay_what_they_are() -> None:
    plain = model("Exp", "Softplus", "Sigmoid")
    bounded = bound_exponents(plain, BOUND)
    onnx.checker.check_model(bounded, full_check=True)
    x = np.array([-700, -89, -61, -3, 0, 5, 61, 300])
    with np.errstate(over="ignore"):
        for found, expected in zip(values(bounded, x), values(plain, x), strict=True):
            np.testing.assert_array_equal(found.astype(np.float16), expected.astype(np.float16))


def test_no_exponential_takes_more_than_the_bound() -> None:
    bounded = bound_exponents(model("Exp"), BOUND)
    bounded.graph.output.append(helper.make_tensor_value_info("exp.bounded", TensorProto.FLOAT, [8]))
    taken = values(bounded, np.array([-1e4, -89, -60, -1, 1, 60, 89, 1e4]))[1]
    assert np.abs(taken).max() == BOUND


def test_a_model_without_exponentials_is_left_alone() -> None:
    plain = model("Sigmoid", "Tanh")
    assert bound_exponents(plain, BOUND) is plain


def test_the_hexagon_npu_gets_bounded_exponents() -> None:
    prepared = prepare_engine(model("Exp"), load_target("qnn"), "fp16", "engine").accelerator
    assert prepared is not None
    assert [node.op_type for node in prepared.graph.node] == ["Clip", "Exp"]
    left = prepare_engine(model("Exp"), load_target("rknn"), "fp16", "engine").accelerator
    assert left is not None
    assert [node.op_type for node in left.graph.node] == ["Exp"]
