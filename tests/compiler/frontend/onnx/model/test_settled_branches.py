"""An ``If`` that asks for sizes and always hears the same becomes its branch; one that data or lengths decide stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.frontend.onnx.model.test_branches import branch
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.compiler.frontend.onnx.model.settled_branches import settle_branches
from twoheads.graphs.errors import CompileError

QUESTIONS: dict[str, list[onnx.NodeProto]] = {
    "as many columns as rows": [
        helper.make_node("Transpose", ["product"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["turned"], ["other"]),
        helper.make_node("Shape", ["product"], ["sizes"]),
        helper.make_node("Equal", ["sizes", "other"], ["same"]),
        helper.make_node("Cast", ["same"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMin", ["numbers"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["asked"], to=TensorProto.BOOL),
    ],
    "longer than 300": [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Squeeze", ["sizes"], ["size"]),
        helper.make_node("Greater", ["size", "many"], ["asked"]),
    ],
    "longer than nobody tries": [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Squeeze", ["sizes"], ["size"]),
        helper.make_node("Greater", ["size", "more"], ["asked"]),
    ],
    "longer than a number that is computed": [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Squeeze", ["sizes"], ["size"]),
        helper.make_node("Div", ["size", "many"], ["parts"]),
        helper.make_node("Greater", ["parts", "many"], ["asked"]),
    ],
    "as long as another input": [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Shape", ["beside"], ["other"], start=1, end=2),
        helper.make_node("Equal", ["sizes", "other"], ["same"]),
        helper.make_node("Squeeze", ["same"], ["asked"]),
    ],
    "as many numbers that are not 0": [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Size", ["places"], ["count"]),
        helper.make_node("Cast", ["count"], ["asked"], to=TensorProto.BOOL),
    ],
    "as large as it says": [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["count", "first"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Size", ["zeros"], ["size"]),
        helper.make_node("Cast", ["size"], ["asked"], to=TensorProto.BOOL),
    ],
    "what it holds": [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["asked"], to=TensorProto.BOOL),
    ],
}


def model(question: str) -> onnx.ModelProto:
    """``x * 2`` if the answer is yes, else ``x * 3``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 4])
    nodes = [
        helper.make_node("Transpose", ["x"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "columns"], ["product"]),
        *QUESTIONS[question],
        helper.make_node("If", ["asked"], ["y"], then_branch=branch(2.0), else_branch=branch(3.0)),
    ]
    beside = helper.make_tensor_value_info("beside", TensorProto.FLOAT, ["batch", "other", 4])
    inputs = [x, beside] if "another" in question else [x]
    graph = helper.make_graph(
        nodes, "asking", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 4])],
        [
            numpy_helper.from_array(np.array(300), "many"),
            numpy_helper.from_array(np.array(8192), "more"),
            numpy_helper.from_array(np.array([0]), "first"),
        ],
    )  # fmt: skip
    for made in (attribute.g for node in graph.node for attribute in node.attribute if attribute.g.output):
        made.output[0].type.CopyFrom(x.type)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_every_length_answers_alike_is_settled(tmp_path: Path) -> None:
    made = model("as many columns as rows")
    settle_branches(made, tmp_path / "model.onnx")
    assert not [node for node in made.graph.node if node.op_type == "If"]
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x: Any = np.random.default_rng(0).standard_normal((1, 7, 4)).astype(np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], 2 * x)


@pytest.mark.parametrize("question", [name for name in QUESTIONS if name != "as many columns as rows"])
def test_what_a_length_or_data_decides_is_refused(question: str, tmp_path: Path) -> None:
    made = model(question)
    settle_branches(made, tmp_path / "model.onnx")
    assert [node.op_type for node in made.graph.node].count("If") == 1
    onnx.save_model(made, str(tmp_path / "model.onnx"))
    with pytest.raises(CompileError, match="or its shape, decides which branch runs"):
        read_onnx(tmp_path / "model.onnx")
