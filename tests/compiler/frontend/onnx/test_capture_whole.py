"""Files of one input size as one engine: convolutional networks, images whose sizes the exporter gave names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import save_model
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

NODES = [
    helper.make_node("Conv", ["pixel_values", "kernel", "bias"], ["map"], strides=[2, 2], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["map"], ["features"]),
    helper.make_node("ReduceMean", ["features"], ["pooled"], axes=[2, 3], keepdims=0),
    helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
]


def weights() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = {"kernel": (6, 3, 3, 3), "bias": (6,), "head": (6, 4)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def network(path: Path, shape: list[int | str], *, all_outputs: bool = True) -> Path:
    outputs: dict[str, Any] = {"logits": ["b", 4], **({"features": ["b", 6, "h", "w"]} if all_outputs else {})}
    return save_model(path, NODES, weights(), outputs, inputs={"pixel_values": (TensorProto.FLOAT, shape)})


@pytest.mark.parametrize("named", [False, True])
def test_a_network_is_one_engine(named: bool, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", ["b", "channels", "height", "width"] if named else ["b", 3, 12, 16])
    if named:
        (tmp_path / "config.json").write_text(json.dumps({"image_size": [12, 16], "num_channels": 3}))
    compiled = compile_model(path, lowering="whole")
    bundle = write_bundle(compiled, tmp_path / "b", generation=False)
    image = np.random.default_rng(1).standard_normal((1, 3, 12, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits, features = (np.asarray(each) for each in session.run(None, {"pixel_values": image}))
    ours = load(bundle)
    hidden, found = (ours.run({"pixel_values": image}, output=output).array for output in ("hidden", "logits"))
    assert hidden is not None
    assert found is not None
    np.testing.assert_allclose(hidden, features.reshape(6, -1).T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.reshape(1, 4), logits, rtol=0, atol=1e-5)
    assert verify(bundle, path).passed
    for kind, factor in (("bias", 0), ("kernel", 1.001)):  # dropped; off by a thousandth
        name = next(name for name in compiled.weights if name.startswith(kind))
        array = (factor * compiled.weights[name]).astype(np.float32)
        other = write_bundle(replace(compiled, weights={**compiled.weights, name: array}), tmp_path / kind)
        assert not verify(other, path).passed


def test_the_only_result_is_one_row(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", [1, 3, 12, 16], all_outputs=False)
    program = compile_model(path, lowering="whole").program
    assert (program.value(program.hidden).axis, program.logits) == ("1", None)


def test_sizes_that_nobody_says_are_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", ["b", 3, "height", "width"])
    with pytest.raises(CompileError, match=r"whole models have one input size.*\n.*config\.json"):
        compile_model(path, lowering="whole")
    with pytest.raises(CompileError, match=r"two dimensions without a number.*\n.*--lowering whole"):
        compile_model(path)
    with pytest.raises(CompileError, match="is for files of any length"):
        compile_model(path, lowering="whole", masks={"mask": "full"})


RESIZED = [
    helper.make_node("Conv", ["image", "kernel", "bias"], ["map"], strides=[4, 4]),
    helper.make_node("Reshape", ["map", "flat"], ["columns"]),
    helper.make_node("Transpose", ["columns"], ["places"], perm=[0, 2, 1]),
    helper.make_node("Concat", ["first", "places"], ["rows"], axis=1),
    helper.make_node("Shape", ["image"], ["sizes"]),
    helper.make_node("Slice", ["sizes", "two", "four"], ["given"]),
    helper.make_node("Div", ["given", "patch"], ["patches"]),
    helper.make_node("Concat", ["one_of_eight", "patches"], ["table_sizes"], axis=0),
    helper.make_node("Resize", ["table", "", "", "table_sizes"], ["grown"], mode="cubic"),
    helper.make_node("Reshape", ["grown", "flat"], ["table_columns"]),
    helper.make_node("Transpose", ["table_columns"], ["positions"], perm=[0, 2, 1]),
    helper.make_node("Concat", ["first", "positions"], ["all_positions"], axis=1),
    helper.make_node("Add", ["rows", "all_positions"], ["tokens"]),
    helper.make_node("Softmax", ["tokens"], ["weighted"], axis=-1),
    helper.make_node("Slice", ["weighted", "one", "last", "one"], ["behind"]),
    helper.make_node("Transpose", ["behind"], ["channels"], perm=[0, 2, 1]),
    helper.make_node("Reshape", ["channels", "grid"], ["small"]),
    helper.make_node("Concat", ["one_of_eight", "given"], ["full_sizes"], axis=0),
    helper.make_node("Resize", ["small", "", "", "full_sizes"], ["large"], mode="linear"),
]
"""A vision transformer that fits its positions to the image, and whose map is as large as the image again."""


def test_sizes_that_are_computed_from_the_image_are_numbers(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 4, 4), "bias": (8,), "first": (1, 1, 8), "table": (1, 8, 2, 2)}
    numbers = {
        "flat": [1, 8, -1], "two": [2], "four": [4], "patch": [4], "one_of_eight": [1, 8], "one": [1], "last": [99],
        "grid": [1, 8, 4, 6],
    }  # fmt: skip
    path = save_model(
        tmp_path / "m.onnx",
        RESIZED,
        {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        | {name: np.array(row) for name, row in numbers.items()},
        {"large": ["b", 8, 16, 24]},
        inputs={"image": (TensorProto.FLOAT, ["b", 3, 16, 24])},
    )
    bundle = write_bundle(compile_model(path, lowering="whole"), tmp_path / "b", generation=False)
    assert verify(bundle, path).passed
