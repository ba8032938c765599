"""Products of whole numbers: the formula, and that a row's bits depend on nothing but the row and the weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from tests.export.small_decoder import small_decoder
from twoheads.export import quantise_weights
from twoheads.export.emit.graph_builder import WHOLE_PRODUCT, GraphBuilder
from twoheads.export.emit.tokenwise import EmittedRegion
from twoheads.export.precision.quantised_arrays import expanded
from twoheads.export.precision.quantised_engine import quantised_engine
from twoheads.export.precision.whole_products import dequantise_whole, quantise_whole
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import numbers_beside, quantised_ports

Array = npt.NDArray[Any]
OUTER = 40


def _weight(inner: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((OUTER, inner)).astype(np.float32)


def _session(shape: Sequence[int], weight: Array, bias: Array | None = None) -> Any:
    """An open engine ``y = x w'`` with rows of ``shape``, a bias if there is one, and one more product of the rows."""
    graph, inner = GraphBuilder(), weight.shape[1]
    inputs = ["x", "w"] if bias is None else ["x", "w", graph.array("bias", bias)]
    if len(shape) == 1:
        graph.node("Gemm", *inputs, transB=1, output="y")
    else:
        graph.node("MatMul", "x", "w", output="y")
    port = Port("w", "float32", weight.shape if len(shape) == 1 else weight.T.shape)
    model = graph.model("m", [Port("x", "float32", (*shape, inner)), port], [Port("y", "float32", (*shape, OUTER))])
    stored = quantised_ports(port, 8, transposed=len(shape) != 1, whole=True)
    made = quantised_engine(model, {"w": stored}, {"w": 8})
    values, scales = quantise_whole(weight)
    for name, array in zip((one.name for one in stored), (values.T, scales), strict=True):
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(made.SerializeToString(), options)


def _run(session: Any, rows: Array) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = session.run(None, {"x": rows})[0]
    return found


def _hadamard(size: int) -> Array:
    bits = np.arange(size)[:, None] & np.arange(size)
    return np.array([[(-1) ** bin(number).count("1") for number in row] for row in bits], np.int64)


@pytest.mark.parametrize(("inner", "turned"), [(192, 64), (96, 32)])
def test_the_formula(inner: int, turned: int) -> None:
    """In NumPy's whole numbers. The rows are small whole numbers, which are rotated without rounding."""
    rows = np.random.default_rng(1).integers(-50, 50, (9, inner)).astype(np.float32)
    rows[3] = 0
    rows[5, 7] = 4000
    weight, bias = _weight(inner), np.arange(OUTER, dtype=np.float32)
    values, scales = quantise_whole(weight)
    rotated = (rows.reshape(9, -1, turned).astype(np.int64) @ _hadamard(turned)).reshape(9, inner) / np.float32(8)
    rotated = rotated.astype(np.float32)
    largest = np.maximum(np.abs(rotated).max(1, keepdims=True), np.float32(1e-30))
    rounded = np.rint(rotated * (np.float32(127) / largest)).astype(np.int64)
    assert np.abs(rounded).max() == 127
    sums = rounded @ values.astype(np.int64).T
    expected = sums.astype(np.float32) * (scales * np.float32(1 / 127)) * largest + bias
    np.testing.assert_allclose(_run(_session((9,), weight, bias), rows), expected, rtol=3e-7, atol=1e-6)
    plain = rows.astype(np.float64) @ weight.T.astype(np.float64) + bias
    assert np.abs(expected - plain).max() < 0.02 * np.abs(plain).max()


def test_a_weight_is_off_by_half_a_step() -> None:
    for inner in (192, 96):
        weight = _weight(inner)
        weight[2] = 0
        values, scales = quantise_whole(weight)
        assert values.dtype == np.int8
        assert (np.abs(values).max(1)[[0, 1, 3]] == 127).all()
        back = dequantise_whole(values, scales)
        error = np.sqrt(((back - weight) ** 2).mean(1))
        assert (error <= scales * 0.6 * np.sqrt(64 / inner if inner % 64 else 1)).all()
        np.testing.assert_array_equal(expanded((values.T, scales), transposed=False), back)
        np.testing.assert_array_equal(expanded((values.T, scales), transposed=True), back.T)


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    """In 1, 2, 8, 64 and 256 rows, on either side of the kernels' sizes, beside large numbers and none."""
    weight, random = _weight(192), np.random.default_rng(2)
    rows = random.standard_normal((256, 192)).astype(np.float32)
    expected = _run(_session((256,), weight), rows)
    for count in (1, 2, 8, 64):
        session = _session((count,), weight)
        for start in (0, 100):
            found = _run(session, rows[start : start + count])
            np.testing.assert_array_equal(found, expected[start : start + count])
    np.testing.assert_array_equal(_run(_session((1, 256), weight), rows[None])[0], expected)
    others = (random.standard_normal((256, 192)) * 1e4).astype(np.float32)
    others[::3], others[1::7] = np.nan, 0
    others[17] = rows[17]
    found = _run(_session((256,), weight), others)
    np.testing.assert_array_equal(found[17], expected[17])
    assert np.isnan(found[0]).all()
    assert (found[1::7][:2] == 0).all()


def test_rows_are_rounded_once_for_all_products_of_them() -> None:
    regions = quantise_weights(small_decoder().model, "int8", "int8").regions.values()
    nodes = [node for one in regions if isinstance(one, EmittedRegion) for node in one.model.graph.node]
    products = [node for node in nodes if node.op_type == WHOLE_PRODUCT]
    rounded = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert len(products) > len(rounded) >= len({node.input[0] for node in products}) > 0


def test_what_a_product_takes_beside() -> None:
    values, scales = quantised_ports(Port("w", "float32", (OUTER, 192)), 8, transposed=False, whole=True)
    assert (values.dtype, values.shape, scales.shape) == ("int8", (192, OUTER), (OUTER,))
    assert numbers_beside(values) == 2 * 192 + OUTER
    assert numbers_beside(scales) == 0
