"""Files of one input size as one engine: convolutional networks, images whose sizes the exporter gave names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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


FLAT, IMAGE = [1, 16, 8], [1, 3, 8, 8]
TRAINED = ["x", "three", "three", "three", "three"]
UNPOOLED = {"kernel_shape": [2, 2], "strides": [2, 2]}
CONSTANTS: dict[str, Any] = {
    "three": np.ones(3, np.float32), "zero": np.array([0]), "one": np.array([1]), "halves": np.array([4, 4]),
    "factors": np.array([1, 1, 2, 2], np.float32),
    "grid": np.array([1, 3, 5, 5]), "size": np.array([1, 3, 8, 8]), "crop": np.array([5, 9]),
    "gates": np.eye(16, 8, dtype=np.float32)[None], "state": np.eye(16, 4, dtype=np.float32)[None],
    "blocks": np.array([2, 2]), "row": np.zeros(8, np.float32),
}  # fmt: skip


def small(path: Path, nodes: list[Any], shape: list[int], kind: int, outputs: tuple[str, ...] = ("y",)) -> Path:
    """A file of one input ``x``, whose outputs have whatever shape and type its operators give them."""
    read = {name for node in nodes for name in node.input}
    weights = {name: array for name, array in CONSTANTS.items() if name in read}
    save_model(path, nodes, weights, {"y": shape}, inputs={"x": (kind, shape)}, opset=20)
    model = onnx.load(str(path))
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.output:
        value.type.tensor_type.shape.SetInParent()
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or kind
    onnx.save(inferred, str(path))
    return path


REFUSED: list[tuple[list[Any], list[int], int, str]] = [
    ([("SequenceEmpty", [], ["s"]), ("SequenceLength", ["s"], ["y"])], FLAT, 1, r"SequenceEmpty.*sequences or strings"),
    ([("Optional", ["x"], ["o"]), ("OptionalGetElement", ["o"], ["y"])], FLAT, 1, "values that may be missing"),
    ([("BatchNormalization", TRAINED, ["y", "m", "v"], {"training_mode": 1})], IMAGE, 1, "mean and variance from"),
    ([("Slice", ["x", "zero", "zero", "one"], ["y"])], FLAT, 1, "output y: holds no numbers"),
    ([("Shape", ["x"], ["s"]), ("Unsqueeze", ["s", "zero"], ["y"])], FLAT, 1, "the same whatever the inputs hold"),
    ([("Cast", ["x"], ["y"], {"to": 1})], FLAT, TensorProto.UINT64, "values of uint64, and bundles hold none"),
    (
        [("MaxPool", ["x"], ["p", "i"], UNPOOLED), ("MaxUnpool", ["p", "i", "size"], ["y"], UNPOOLED)], IMAGE, 1,
        r'node "y".*\(MaxUnpool\) whose shape does not follow',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "shape", "kind", "said"), REFUSED, ids=[nodes[-1][0] for nodes, *_ in REFUSED])
def test_what_no_engine_can_hold_is_refused_for_what_it_is(
    nodes: list[Any], shape: list[int], kind: int, said: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "m.onnx", [_node(*node) for node in nodes], shape, kind)
    with pytest.raises(CompileError, match=said) as refused:
        write_bundle(compile_model(path, lowering="whole"), tmp_path / "b", generation=False)
    assert refused.value.fix


EXACT: list[tuple[list[Any], list[int], int]] = [
    ([("Resize", ["x", "", "factors"], ["y"], {"mode": "nearest"})], IMAGE, 1),
    ([("Split", ["x", "halves"], ["a", ""], {"axis": 2}), ("Concat", ["a", "a"], ["y"], {"axis": 2})], FLAT, 1),
    ([("Greater", ["x", "row"], ["y"])], FLAT, 1),
    ([("AffineGrid", ["x", "grid"], ["y"])], [1, 2, 3], 1),
    ([("CenterCropPad", ["x", "crop"], ["y"], {"axes": [2, 3]})], IMAGE, 1),
    ([("Col2Im", ["x", "halves", "blocks"], ["y"])], [1, 12, 9], 1),
    ([("LSTM", ["x", "gates", "state"], ["", "y"], {"hidden_size": 4})], [1, 5, 8], 1),
    ([("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}), ("Relu", ["t"], ["y"])], FLAT, 1),
    ([("Gather", ["row", "x"], ["g"]), ("Add", ["g", "row"], ["y"])], [1, 8], TensorProto.INT64),
]


@pytest.mark.parametrize(("nodes", "shape", "kind"), EXACT, ids=[nodes[0][0] for nodes, *_ in EXACT])
def test_what_has_one_size_is_one_engine(nodes: list[Any], shape: list[int], kind: int, tmp_path: Path) -> None:
    path = small(tmp_path / "m.onnx", [_node(*node) for node in nodes], shape, kind)
    bundle = write_bundle(compile_model(path, lowering="whole"), tmp_path / "b", generation=False)
    assert verify(bundle, path).passed


def _node(operator: str, inputs: list[str], outputs: list[str], attributes: Mapping[str, Any] | None = None) -> Any:
    return helper.make_node(operator, inputs, outputs, **(attributes or {}))


def test_an_output_that_nothing_computes_is_no_result(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = small(tmp_path / "m.onnx", nodes, FLAT, TensorProto.FLOAT, outputs=("x", "y"))
    bundle = write_bundle(compile_model(path, lowering="whole"), tmp_path / "b", generation=False)
    assert verify(bundle, path).passed
    with pytest.raises(CompileError, match="output x: is an input or a weight"):
        compile_model(path, lowering="whole", results=["x"])


def test_a_file_without_inputs_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path / "m.onnx", [helper.make_node("Neg", ["row"], ["y"])], FLAT, TensorProto.FLOAT)
    model = onnx.load(str(path))
    del model.graph.input[:]
    onnx.save(model, str(path))
    with pytest.raises(CompileError, match="has no inputs"):
        compile_model(path, lowering="whole")


def test_samples_that_convolutions_gather_can_be_of_one_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["samples", "axis"], ["channel"]),
        helper.make_node("Conv", ["channel", "kernel"], ["columns"], strides=[8]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Softmax", ["rows"], ["y"], axis=-1),
    ]
    kernel = np.random.default_rng(0).standard_normal((4, 1, 40)).astype(np.float32)
    weights = {"axis": np.array([1]), "kernel": kernel}
    files = [
        save_model(tmp_path / name, nodes, weights, {"y": ["b", "m", 4]}, inputs={"samples": (TensorProto.FLOAT, size)})
        for name, size in (("any.onnx", ["b", "n"]), ("one.onnx", [1, 64]))
    ]
    with pytest.raises(CompileError, match=r"(?s)does not run at 13 tokens.*convolutions read more.*--lowering whole"):
        compile_model(files[0])
    bundle = write_bundle(compile_model(files[1], lowering="whole"), tmp_path / "b", generation=False)
    assert verify(bundle, files[1]).passed
