"""Norms whose squares half precision does not hold: rewritten, the same numbers, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.rewrites.cast import cast_model
from twoheads.export.accelerators.rewrites.scale_squares import scale_squares
from twoheads.export.accelerators.target import load_target

ROWS, WIDTH, ADDED = 6, 96, 1e-5

Array = npt.NDArray[np.float32]


def model(square: str = "Pow", exponent: float = 2.0, keepdims: int = 1, root: str = "Sqrt") -> onnx.ModelProto:
    """``x / sqrt(mean(x ** 2) + e)`` for ``x [ROWS, WIDTH]``."""
    port = helper.make_tensor_value_info
    nodes = [
        helper.make_node(square, ["x", "x" if square == "Mul" else "exponent"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=keepdims),
        helper.make_node("Add", ["mean", "added"], ["total"]),
        helper.make_node(root, ["total"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["y"]),
    ]
    numbers = {"exponent": np.float32(exponent), "added": np.float32(ADDED), "axes": np.array([-1], np.int64)}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    x, y = (port(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rows() -> Array:
    """Of magnitudes from 1e-4 to 22,000; one is zero, and one has a channel that is far larger than the others."""
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    x *= np.array([[1e-4], [0.02], [1], [300], [0], [1]], np.float32)
    x[5, 7] = -22_000
    return x


def run(given: onnx.ModelProto, x: Array) -> Array:
    session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def in_half(given: onnx.ModelProto, x: Array) -> Array:
    """Every value rounded to float16, as a chip of half precision computes."""
    with np.errstate(over="ignore"):
        (y,) = ReferenceEvaluator(cast_model(given, "fp16")).run(None, {"x": x})
    return np.asarray(y, np.float32)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_squares_are_scaled_and_the_numbers_are_the_same(square: str) -> None:
    plain = model(square)
    scaled = scale_squares(plain)
    onnx.checker.check_model(scaled, full_check=True)
    np.testing.assert_allclose(run(scaled, rows()), run(plain, rows()), rtol=1e-5)
    assert square == "Mul" or "Pow" not in {node.op_type for node in scaled.graph.node}


def test_half_precision_holds_them() -> None:
    plain, x = model(), rows()
    expected = run(plain, x)
    assert np.abs(in_half(plain, x)[5] - expected[5]).max() > 1  # what it is for: the row is zeros
    np.testing.assert_allclose(in_half(scale_squares(plain), x), expected, rtol=0.01, atol=1e-3)


def test_no_square_is_larger_than_16_and_no_divisor_has_a_subnormal_reciprocal() -> None:
    scaled = scale_squares(model())
    names = ("root.square", "root.scale")
    scaled.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(scaled.SerializeToString(), providers=["CPUExecutionProvider"])
    _, squares, divisors = session.run(None, {"x": rows() * np.float32(65_504 / 22_000)})
    assert np.asarray(squares).max() <= 16
    assert (1 / np.asarray(divisors)).min() >= np.finfo(np.float16).smallest_normal


@pytest.mark.parametrize("change", [{"exponent": 3.0}, {"keepdims": 0}, {"root": "Exp"}])
def test_anything_else_is_left_alone(change: dict[str, float | int | str]) -> None:
    plain = model(**change)  # type: ignore[arg-type]
    assert scale_squares(plain) is plain


def test_engines_in_half_precision_alone_are_rewritten() -> None:
    for precision, written in (("fp16", True), ("fp32", False)):
        prepared = prepare_engine(model(), load_target("coreml"), precision, "engine").accelerator
        assert prepared is not None
        assert ("ReduceMax" in {node.op_type for node in prepared.graph.node}) == written
