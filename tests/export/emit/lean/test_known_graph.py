"""An order of operators that is the same in every process: bundles of one model are the same to the byte."""

from __future__ import annotations

import onnx
from onnx import helper

from twoheads.export.emit.lean.known_graph import KnownGraph


def test_operators_follow_the_outputs_in_their_order() -> None:
    names = [f"value_{at * 7919 % 101}" for at in range(20)]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", *names)]
    nodes = [helper.make_node("Neg", ["x"], [name]) for name in reversed(names)]
    model = helper.make_model(helper.make_graph(nodes, "made", values[:1], values[1:]))
    graph = KnownGraph(model)
    graph.finish()
    assert [node.output[0] for node in model.graph.node] == list(reversed(names))
