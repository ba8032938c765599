"""Arithmetic with lengths in hand-made ONNX graphs: what becomes of it, and that the numbers stay the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler.frontend.onnx.capture import capture_onnx, onnx_program
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.compiler.ir.size_formula import SizeFormula, fit_size, lengths_for
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.axes import axis_length

OUTPUTS: dict[str, list[int | str | None]] = {"hidden": ["batch", "tokens", 8]}
RUNS = [{"n": length} for length in (13, 18, 29, 22)]

LENGTH = [
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Gather", ["shape", "one"], ["length"]),
]
NUMBERS = {"zero": np.array(0), "one": np.array(1), "first": np.array([0]), "second": np.array([1])}


def _program(tmp_path, nodes, weights=None, outputs=OUTPUTS):
    path = save_model(tmp_path / "m.onnx", nodes, {**NUMBERS, **attention_weights(), **(weights or {})}, outputs)
    return path, onnx_program(read_onnx(path))


def _operators(program):
    return [node.proto.op_type for node in program.graph.nodes]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([7, 7, 7, 7], SizeFormula((), 1, 7, 1)),
        ([13, 18, 29, 22], SizeFormula(("n",), 1, 0, 1)),
        ([14, 19, 30, 23], SizeFormula(("n",), 1, 1, 1)),
        ([104, 144, 232, 176], SizeFormula(("n",), 8, 0, 1)),
        ([7, 9, 15, 11], SizeFormula(("n",), 1, 1, 2)),
        ([169, 324, 841, 484], None),
    ],
)
def test_sizes_are_fitted_by_formulas(sizes, expected):
    assert fit_size(sizes, RUNS) == expected


def test_a_size_of_two_lengths_is_their_sum():
    runs = [{"n": n, "m": m} for n, m in ((13, 17), (18, 11), (29, 23), (22, 14))]
    assert fit_size([31, 30, 53, 37], runs) == SizeFormula(("m", "n"), 1, 1, 1)


def test_a_table_cut_at_the_length_is_looked_up_by_position(tmp_path):
    table = np.random.default_rng(1).standard_normal((1, 64, 8)).astype(np.float32)
    nodes = [
        *LENGTH,
        helper.make_node("Unsqueeze", ["length", "first"], ["end"]),
        helper.make_node("Slice", ["table", "first", "end", "second"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["y"]),
        *attention_nodes("y", "hidden"),
    ]
    path, program = _program(tmp_path, nodes, {"table": table})
    assert "Slice" not in _operators(program)
    assert [entry.source for entry in program.inputs] == ["argument", "positions"]
    captured = capture_onnx(path)
    assert captured.graph.max_length is None  # found by the pass that reads look-ups, of whichever front door


def test_counting_tokens_by_a_running_sum_reads_counts(tmp_path):
    ones = helper.make_tensor("ones", TensorProto.INT64, [1], [1])
    nodes = [
        *LENGTH,
        helper.make_node("Unsqueeze", ["length", "first"], ["end"]),
        helper.make_node("ConstantOfShape", ["end"], ["mask"], value=ones),
        helper.make_node("CumSum", ["mask", "zero"], ["counted"]),
        helper.make_node("Gather", ["table", "counted"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["y"]),
        *attention_nodes("y", "hidden"),
    ]
    _, program = _program(tmp_path, nodes, {"table": np.eye(64, 8, dtype=np.float32)})
    assert "CumSum" not in _operators(program)
    positions = np.arange(5)
    counted = program.evaluate(["counted"], {"x": np.zeros((1, 5, 8), np.float32), "counts": positions})["counted"]
    np.testing.assert_array_equal(counted, positions + 1)


def test_a_number_made_of_the_length_reads_the_input_length(tmp_path):
    nodes = [
        *LENGTH,
        helper.make_node("Cast", ["length"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["x", "number"], ["y"]),
        *attention_nodes("y", "hidden"),
    ]
    _, program = _program(tmp_path, nodes)
    assert [(entry.source, entry.axis) for entry in program.inputs] == [("argument", None), ("length", "n")]


def test_shapes_are_formulas_and_their_arithmetic_is_gone(tmp_path):
    nodes = [
        *LENGTH,
        helper.make_node("Unsqueeze", ["length", "first"], ["n"]),
        helper.make_node("Concat", ["second", "n", "sizes"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["heads"]),
        helper.make_node("Reshape", ["heads", "shape"], ["y"]),
        *attention_nodes("y", "hidden"),
    ]
    path, program = _program(tmp_path, nodes, {"sizes": np.array([2, 4])})
    assert not {"Shape", "Gather", "Concat"} & set(_operators(program))
    assert "Reshape(%x, [1, n, 2, 4])" in str(capture_onnx(path).graph)


def test_a_length_baked_into_the_file_is_refused(tmp_path):
    nodes = [helper.make_node("Add", ["x", "baked"], ["y"]), *attention_nodes("y", "hidden")]
    with pytest.raises(CompileError, match="does not run at 13 tokens"):
        _program(tmp_path, nodes, {"baked": np.zeros((1, 11, 8), np.float32)})


def test_a_file_of_a_fixed_number_of_tokens_is_refused_with_a_remedy(tmp_path):
    inputs = {"x": (TensorProto.FLOAT, [1, 20, 8])}
    outputs: dict[str, list[int | str | None]] = {"hidden": [1, 20, 8]}
    path = save_model(tmp_path / "m.onnx", attention_nodes("x", "hidden"), attention_weights(), outputs, inputs=inputs)
    with pytest.raises(CompileError, match="fixed number of tokens") as refused:
        capture_onnx(path)
    assert "dynamic token axis" in refused.value.fix


@pytest.mark.parametrize("axis", ["n", "n+1", "(n+1)//2", "n-2", "n+n", "m+n", "197"])
def test_a_block_of_an_axis_has_lengths(axis):
    lengths = lengths_for(axis, 16)
    assert axis == "197" or axis_length(axis, lengths) == 16
