"""An engine that no runtime would open is refused when it is written."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.bundle.engine_files import assert_static, save_engine
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.engines.port import Port


def test_what_the_reader_refuses_is_not_written(tmp_path):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    model = helper.make_model(helper.make_graph([node], "g", [], [y]), opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(CompileError, match="draws random numbers"):
        save_engine(model, tmp_path / "e.onnx", (), (Port("y", "float32", (4,)),), {})
    assert not (tmp_path / "e.onnx").exists()


def test_a_slice_of_no_width_is_static_and_a_port_of_none_is_not():
    """Rotary positions that cover a whole head leave a rest of no width."""
    ends = {"from": [4], "to": [4], "along": [1]}
    held = [numpy_helper.from_array(np.array(value), name) for name, value in ends.items()]
    widths = {"x": 4, "y": 4, "r": 0}
    x, y, rest = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, n]) for name, n in widths.items())
    cut, join = helper.make_node("Slice", ["x", *ends], ["r"]), helper.make_node("Concat", ["x", "r"], ["y"], axis=1)
    graphs = [helper.make_graph(nodes, "g", [x], [out], held) for nodes, out in (([cut, join], y), ([cut], rest))]
    inside, port = (helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]) for graph in graphs)
    assert_static(inside, "inside")
    with pytest.raises(InternalError, match=r"r has the shape \[2, 0\]"):
        assert_static(port, "port")


def test_every_value_has_numbers_for_sizes():
    """The second layer's like the first one's."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    pair = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    model = helper.make_model(helper.make_graph(pair, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)])
    assert_static(model, "fixed")
    loose = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])
    model.graph.input.append(loose)
    with pytest.raises(InternalError, match=r"z has the shape \['n', 4\]"):
        assert_static(model, "loose")


def test_what_the_sequence_sizes_is_named():
    """Between ports alone."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    size, found = helper.make_tensor_value_info("n", TensorProto.INT64, [1]), "cut_a"
    held = [numpy_helper.from_array(np.array([number]), name) for name, number in (("zero", 0), ("one", 1))]
    cut = helper.make_node("Slice", ["x", "zero", "n", "one"], [found])
    total = helper.make_node("ReduceSum", [found], ["sum"], keepdims=0)
    nodes = [cut, total, helper.make_node("Add", ["x", "sum"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x, size], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert_static(model, "cut", "cut_")
    for named in ("", "other_"):
        with pytest.raises(InternalError, match=f"{found} has the shape"):
            assert_static(model, "cut", named)
