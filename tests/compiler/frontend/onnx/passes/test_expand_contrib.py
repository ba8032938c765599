"""ONNX Runtime's own operators against what they are written out as, both run by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode
from twoheads.compiler.frontend.onnx.passes.expand_contrib import expand_contrib
from twoheads.compiler.ir.source_graph import TensorType
from twoheads.graphs.errors import CompileError

CASES: dict[str, tuple[str, list[str], list[str], dict[str, Any]]] = {
    "Gelu": ("com.microsoft", ["x"], ["y"], {}),
    "BiasGelu": ("com.microsoft", ["x", "bias"], ["y"], {}),
    "FastGelu": ("com.microsoft", ["x", "bias"], ["y"], {}),
    "QuickGelu": ("com.microsoft", ["x"], ["y"], {"alpha": 1.5}),
    "SimplifiedLayerNormalization": ("", ["x", "scale"], ["y"], {"axis": -1, "epsilon": 1e-3}),
    "SkipLayerNormalization": (
        "com.microsoft", ["x", "skip", "scale", "bias", "more"], ["y", "", "", "sum"], {"epsilon": 1e-3},
    ),
    "SkipSimplifiedLayerNormalization": (
        "com.microsoft", ["x", "skip", "scale", "more"], ["y", "", "", "sum"], {"epsilon": 1e-3},
    ),
    "FusedMatMul": ("com.microsoft", ["x", "skip"], ["y"], {"transB": 1, "alpha": 0.25}),
    "FusedGemm": (
        "com.microsoft", ["rows", "square", "bias"], ["y"],
        {"transB": 1, "alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.2},
    ),
    "EmbedLayerNormalization": (
        "com.microsoft", ["ids", "segments", "square", "square", "square", "scale", "bias", "mask"], ["y", "count"],
        {"epsilon": 1e-3},
    ),
}  # fmt: skip


def _values() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    values = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "x": (1, 5, 8), "skip": (1, 5, 8), "rows": (5, 8), "square": (8, 8), "scale": (8,), "bias": (8,),
            "more": (8,),
        }.items()
    }  # fmt: skip
    ids = generator.integers(0, 8, (2, 1, 5)).astype(np.int32)
    return {**values, "ids": ids[0], "segments": ids[1], "mask": np.ones((1, 5), np.int32)}


def _graph(operator: str, opset: int) -> tuple[OnnxGraph, list[str]]:
    domain, inputs, outputs, attributes = CASES[operator]
    proto = helper.make_node(operator, inputs, outputs, domain=domain, **attributes)
    return OnnxGraph({"": opset, "com.microsoft": 1}, (OnnxNode(proto),), {}), [name for name in outputs if name]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("operator", sorted(CASES))
def test_an_operator_means_what_it_is_written_out_as(operator, opset):
    graph, outputs = _graph(operator, opset)
    values = _values()
    types = {name: TensorType(str(array.dtype), array.shape) for name, array in values.items()}
    plain = expand_contrib(graph, types)
    assert all(not node.proto.domain and node.proto.op_type != operator for node in plain.nodes) or operator == "Gelu"
    expected, got = graph.run(outputs, values, {}), plain.run(outputs, values, {})
    for name in outputs:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=2e-6)


def test_standard_operators_stay_as_they_are():
    graph = OnnxGraph({"": 20}, (OnnxNode(helper.make_node("Gelu", ["x"], ["y"])),), {})
    assert expand_contrib(graph, {}) is graph


def test_an_unknown_operator_of_onnx_runtime_is_refused_by_name():
    proto = helper.make_node("MurmurHash3", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(CompileError, match="MurmurHash3"):
        expand_contrib(OnnxGraph({"": 20}, (OnnxNode(proto),), {}), {})
