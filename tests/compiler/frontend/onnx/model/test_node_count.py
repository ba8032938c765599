"""Files that come to more operators than anybody waits for, however small they are."""

from __future__ import annotations

import time

import onnx
import pytest
from onnx import helper

from twoheads.compiler.frontend.onnx.model.node_count import MOST_NODES, check_node_count
from twoheads.graphs.errors import CompileError


def model(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(nodes, "g", [], []), functions=functions)


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    nodes = [helper.make_node(call, ["x"], ["x"], domain="f" if call.startswith("f") else "") for call in calls]
    return helper.make_function("f", name, ["x"], ["x"], nodes, [helper.make_opsetid("", 17)])


def call(name: str, times: int = 1) -> list[onnx.NodeProto]:
    return [
        helper.make_node(name, ["x"], [f"y{at}"], domain="f" if name.startswith("f") else "") for at in range(times)
    ]


def test_functions_count_by_what_they_hold() -> None:
    nested = [function("f0", ["Relu"] * 10), function("f1", ["f0"] * 10)]
    check_node_count(model(call("f1", MOST_NODES // 100), nested), "here")
    with pytest.raises(CompileError, match="its functions written out"):
        check_node_count(model(call("f1", MOST_NODES // 100 + 1), nested), "here")


def test_a_long_file_without_functions() -> None:
    check_node_count(model(call("Relu", MOST_NODES), []), "here")
    with pytest.raises(CompileError, match=f"more than {MOST_NODES} operators\n"):
        check_node_count(model(call("Relu", MOST_NODES + 1), []), "here")


def test_functions_that_double_forty_times() -> None:
    bomb = [function("f0", ["Relu"])] + [function(f"f{at}", [f"f{at - 1}"] * 2) for at in range(1, 41)]
    began = time.monotonic()
    with pytest.raises(CompileError, match="operators"):
        check_node_count(model(call("f40"), bomb), "here")
    assert time.monotonic() - began < 10  # it would take centuries


@pytest.mark.parametrize("calls", [{"f0": ["f0"]}, {"f0": ["f1"], "f1": ["f2"], "f2": ["f0"]}])
def test_functions_that_call_themselves(calls: dict[str, list[str]]) -> None:
    with pytest.raises(CompileError, match="calls itself"):
        check_node_count(model(call("f0"), [function(name, called) for name, called in calls.items()]), "here")


def test_a_branch_counts() -> None:
    inside = helper.make_graph(call("Relu", MOST_NODES), "g", [], [])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inside, else_branch=inside)
    with pytest.raises(CompileError, match="operators"):
        check_node_count(model([branch], []), "here")
