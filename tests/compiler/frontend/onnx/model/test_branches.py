"""An ``If`` whose branch is known becomes that branch; any other stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.compiler.frontend.onnx.model.branches import take_branches


def branch(factor: float, inner: onnx.NodeProto | None = None) -> onnx.GraphProto:
    """``x * factor``, where both branches call their values alike; of ``inner``'s result if there is one."""
    nodes = [inner] if inner else []
    nodes.append(helper.make_node("Mul", [inner.output[0] if inner else "x", "factor"], ["made"]))
    output = helper.make_tensor_value_info("made", TensorProto.FLOAT, [2])
    held = [numpy_helper.from_array(np.array(factor, np.float32), "factor")]
    return helper.make_graph(nodes, "branch", [], [output], held)


def model(condition: str, then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    inputs.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["computed"], to=TensorProto.BOOL),
        helper.make_node("If", [condition], ["y"], then_branch=then, else_branch=other),
    ]
    held = [numpy_helper.from_array(np.array(value), name) for name, value in (("yes", True), ("no", False))]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "switched", inputs, [output], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("condition", "factor"), [("use_cache_branch", 3.0), ("yes", 2.0), ("no", 3.0)])
def test_the_branch_that_a_run_without_a_past_takes(condition: str, factor: float) -> None:
    made = model(condition, branch(2.0), branch(3.0))
    take_branches(made.graph)
    assert not [node for node in made.graph.node if node.op_type == "If"]
    assert [value.name for value in made.graph.input] == ["x"]
    onnx.checker.check_model(made)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x: Any = np.array([1, 5], np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], factor * x)


def test_branches_inside_of_branches() -> None:
    inner = helper.make_node("If", ["yes"], ["deep"], then_branch=branch(5.0), else_branch=branch(7.0))
    made = model("use_cache_branch", branch(2.0), branch(3.0, inner))
    take_branches(made.graph)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["y"], {"x": np.ones(2, np.float32)})[0], [15, 15])


def test_a_condition_that_is_computed_stays() -> None:
    made = model("computed", branch(2.0), branch(3.0))
    take_branches(made.graph)
    assert [node.op_type for node in made.graph.node].count("If") == 1
