"""Products with weights in whole numbers of 16 and 8 bits: near what they were, and nothing else is rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.accelerators.rewrites.round_weighted import round_weighted

ROWS, WIDE, COLUMNS = 8, 64, 32

Array = npt.NDArray[Any]


def model(seed: int = 0) -> onnx.ModelProto:
    """``x [8, 64]`` by two weights of columns of many sizes, one transposed with a bias, and a product of values."""
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.uniform(-2, 1, COLUMNS)
    first = (random.normal(size=(COLUMNS, WIDE)) * sizes[:, None]).astype(np.float32)
    second = random.normal(size=(COLUMNS, COLUMNS)).astype(np.float32)
    bias = random.normal(size=COLUMNS).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "first", "bias"], ["inner"], name="inner", transB=1),
        helper.make_node("MatMul", ["inner", "second"], ["y"], name="y"),
        helper.make_node("Transpose", ["y"], ["across"], name="across", perm=[1, 0]),
        helper.make_node("MatMul", ["y", "across"], ["z"], name="z"),
    ]
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [port("x", TensorProto.FLOAT, [ROWS, WIDE])],
        [port("y", TensorProto.FLOAT, [ROWS, COLUMNS]), port("z", TensorProto.FLOAT, [ROWS, ROWS])],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("first", first), ("second", second), ("bias", bias))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def values(given: onnx.ModelProto, x: Array) -> Sequence[Any]:
    options = onnxruntime.SessionOptions()  # as the file says: a fusion for groups of 4 bits rounds activations to 8
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Sequence[Any] = session.run(None, {"x": x})
    return found


def rows(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDE)).astype(np.float32)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.03), (4, 0.5)])
def test_what_is_rounded_is_near_what_it_was(bits: int, most: float) -> None:
    plain = model()
    rounded = round_weighted(plain, bits, [{"x": rows(1)}, {"x": rows(2)}])
    onnx.checker.check_model(rounded, full_check=True)
    found, expected = values(rounded, rows(3))[0], values(plain, rows(3))[0]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert most / 20 < error < most


def test_groups_of_four_bits_keep_scales_of_their_own() -> None:
    """Both ways to hold a matrix; where 128 does not divide a column 64 do, and where they do not it has one scale."""
    for length, group in ((256, 128), (192, 64), (96, 96)):
        random = np.random.default_rng(length)
        sizes = random.uniform(0.2, 1, (length // group, 1, COLUMNS)).repeat(group, 1).reshape(length, COLUMNS)
        weight = (random.normal(size=(length, COLUMNS)) * sizes).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="y"),
            helper.make_node("Gemm", ["x", "v"], ["z"], name="z", transB=1),
        ]
        port = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [port("x", TensorProto.FLOAT, [ROWS, length])],
            [port(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in "yz"],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight.T.copy(), "v")],
        )
        plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        x = random.normal(size=(ROWS, length)).astype(np.float32)
        rounded = round_weighted(plain, 4, [{"x": x}])
        blocks = weight.reshape(-1, group, COLUMNS).astype(np.float64)
        needed = np.abs(blocks).max(1, keepdims=True) / 7
        if group < length:  # whole numbers of a fifteenth of the column's largest scale
            needed = np.ceil(needed / (needed.max(0) / 15) * (1 - 1e-6)) * (needed.max(0) / 15)
        expected = x @ (np.rint(blocks / needed) * needed).reshape(length, COLUMNS)
        for found in values(rounded, x):
            assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_tanh_never_stands_between_whole_numbers() -> None:
    """Qualcomm's provider would make it one of them, and garble it."""
    plain = model()
    plain.graph.node[1].input[0] = "turned"
    plain.graph.node.insert(1, helper.make_node("Tanh", ["inner"], ["turned"], name="turned"))
    rounded = round_weighted(plain, 8, [{"x": rows(1)}])
    makers = {name: node for node in rounded.graph.node for name in node.output}
    (tanh,) = (node for node in rounded.graph.node if node.op_type == "Tanh")
    (reader,) = (node for node in rounded.graph.node if tanh.output[0] in node.input)
    assert makers[tanh.input[0]].op_type == reader.op_type == "Neg"
    found, expected = values(rounded, rows(1))[0], values(plain, rows(1))[0]
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_weights_are_whole_numbers_and_products_of_values_stay() -> None:
    rounded = round_weighted(model(), 8, [{"x": rows(1)}])
    types = {tensor.name: tensor.data_type for tensor in rounded.graph.initializer}
    assert not {"first", "second"} & set(types)
    assert list(types.values()).count(TensorProto.INT8) == 4  # two weights, and the zero of each column
    (last,) = (node for node in rounded.graph.node if node.output[0] == "z")
    assert list(last.input) == ["y", "across"]


def test_a_value_twice_as_large_as_in_the_runs_still_fits() -> None:
    plain, x = model(), rows(1)
    rounded = round_weighted(plain, 8, [{"x": x}])
    for scale, fits in ((1.9, True), (8.0, False)):
        found, expected = values(rounded, x * np.float32(scale))[0], values(plain, x * np.float32(scale))[0]
        assert (np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)) == fits
