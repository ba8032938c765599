"""Engines in the form that a compiler reads compute what they did."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.accelerators.rewrites.opset import opset, prepare_model


def norm_and_gelu() -> onnx.ModelProto:
    """RMSNorm with its weight first, then Gelu: what exporters write, and what compilers stumble over."""
    constants = {"two": 2.0, "axes": [-1], "weight": np.linspace(0.5, 2, 8), "half": 0.5}
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["normed"]),
        helper.make_node("Mul", ["weight", "normed"], ["scaled"]),
        helper.make_node("Gelu", ["scaled"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(np.asarray(value, np.int64 if name == "axes" else np.float32), name)
        for name, value in constants.items()
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("approximation", ["none", "tanh"])
@pytest.mark.parametrize("version", [None, 19, 17])
def test_an_older_operator_set_computes_the_same(version, approximation):
    model = norm_and_gelu()
    model.graph.node[-1].attribute.append(helper.make_attribute("approximate", approximation))
    before = model.SerializeToString()
    prepared = prepare_model(model, version)
    assert opset(prepared) == (version or 20)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(run(prepared, x), run(model, x), rtol=0, atol=1e-6)
    onnx.checker.check_model(prepared, full_check=True)
    assert model.SerializeToString() == before


def test_constants_come_second():
    scale = next(node for node in prepare_model(norm_and_gelu()).graph.node if "weight" in node.input)
    assert list(scale.input) == ["normed", "weight"]


def head(columns: int, *, transposed: int = 1) -> onnx.ModelProto:
    """A product with a constant weight."""
    shape = (columns, 4) if transposed else (4, columns)
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), "weight")
    node = helper.make_node("Gemm", ["x", "weight"], ["y"], name="head", transB=transposed, alpha=0.5)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, w]) for n, w in (("x", 4), ("y", columns))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_wide_product_is_computed_in_parts():
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    prepared = prepare_model(head(21), None, 8)
    assert [node.op_type for node in prepared.graph.node] == ["Gemm", "Gemm", "Gemm", "Concat"]
    assert [list(tensor.dims) for tensor in prepared.graph.initializer] == [[7, 4]] * 3
    np.testing.assert_allclose(run(prepared, x), run(head(21), x), rtol=1e-6)
    onnx.checker.check_model(prepared, full_check=True)
    for narrow in (prepare_model(head(8), None, 8), prepare_model(head(21, transposed=0), None, 8)):
        assert [node.op_type for node in narrow.graph.node] == ["Gemm"]


def test_a_reciprocal_becomes_a_division_where_nothing_else_reads_it():
    operators = [node.op_type for node in prepare_model(norm_and_gelu()).graph.node]
    assert "Div" in operators
    assert "Reciprocal" not in operators
    read_twice = norm_and_gelu()
    read_twice.graph.node.append(helper.make_node("Add", ["y", "factor"], ["z"]))
    read_twice.graph.output[0].name = "z"
    assert "Reciprocal" in [node.op_type for node in prepare_model(read_twice).graph.node]
