"""A few bytes of a file can't ask for memory without bound: what makes large arrays is looked at before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.compiler.frontend.onnx.capture import capture_onnx
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.model.growth import largest_made, parts
from twoheads.graphs.errors import CompileError

MANY = 10**9

CASES: dict[str, tuple[list[Any], int]] = {
    "ConstantOfShape": ([[MANY]], MANY),
    "Expand": ([np.ones((2, 1)), [3, 1, 5]], 30),
    "Tile": ([np.ones((2, 3)), [10, 10]], 600),
    "Range": ([0, MANY, 2], MANY // 2),
    "Pad": ([np.ones((2, 3)), [1, 0, 1, 2]], 20),
    "OneHot": ([np.zeros((2, 3), np.int64), [7]], 42),
    "Resize": ([np.ones((1, 1, 4, 4)), [], [1.0, 1.0, 2.0, 2.0]], 64),
}


@pytest.mark.parametrize("operator", CASES)
def test_how_much_an_operator_makes(operator: str) -> None:
    operands, count = CASES[operator]
    arrays = {at: np.asarray(operand) for at, operand in enumerate(operands)}
    proto = helper.make_node(operator, [f"x{at}" for at in arrays], ["y"])
    if count > 1 << 27:
        with pytest.raises(CompileError, match=f"makes an array of {count} numbers"):
            largest_made(proto, arrays, "here")
    else:
        assert largest_made(proto, arrays, "here") == count


def test_a_graph_runs_in_parts_that_end_where_a_size_is_computed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Mul", ["size", "size"], ["larger"]),
        helper.make_node("ConstantOfShape", ["larger"], ["zeros"]),
        helper.make_node("Expand", ["x", "size"], ["same"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
    ]
    graph = OnnxGraph({"": 17}, tuple(map(OnnxNode, nodes)), {})
    assert [len(part) for part in parts(graph.nodes)] == [2, 3]
    x = np.ones((3, 2), np.float32)
    found = graph.run(["sum", "same"], {"x": x}, {}, every=True)
    assert found["zeros"].shape == (9, 4)
    np.testing.assert_array_equal(found["same"], x)
    assert set(graph.run(["sum"], {"x": x}, {})) == {"sum"}
    with pytest.raises(CompileError, match=r'node "zeros": makes an array of \d+ numbers \(ConstantOfShape\)'):
        graph.run(["sum"], {"x": np.ones((200, 60), np.float32)}, {})


@pytest.mark.parametrize("hidden", [False, True])
def test_a_file_with_a_large_constant_is_refused(tmp_path: Path, hidden: bool) -> None:
    """Also where the size is computed, and nothing but running the file's arithmetic tells it."""
    size = numpy_helper.from_array(np.array([MANY if not hidden else 31_623], np.int64), "size")
    nodes = [
        helper.make_node("Mul" if hidden else "Identity", ["size", "size"] if hidden else ["size"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "y"], ["z"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n", 8]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [size])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(CompileError, match="makes an array of"):
        capture_onnx(path)
