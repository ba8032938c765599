"""Weights of ONNX files from anybody: places, types and sizes that are none are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.onnx.model.tensors import array_of, constant_of
from twoheads.graphs.errors import CompileError

OUTPUTS: dict[str, list[int | str | None]] = {"hidden": ["batch", "tokens", 8]}


def external(folder: Path, **entries: str) -> TensorProto:
    """A weight of 4 x 3 numbers in a file of 100 bytes."""
    (folder / "data").write_bytes(bytes(range(100)))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "data"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_places_that_are_some(tmp_path: Path) -> None:
    want = np.frombuffer(bytes(range(100)), np.float32, 12, 8).reshape(4, 3)
    for entries in ({"offset": "8"}, {"offset": "8", "length": "48"}):
        np.testing.assert_array_equal(array_of(external(tmp_path, **entries), tmp_path / "m.onnx"), want)
    assert array_of(external(tmp_path), tmp_path / "m.onnx").shape == (4, 3)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"offset": "-64"}, "offset '-64'"),
        ({"offset": "abc"}, "offset 'abc'"),
        ({"offset": "1e3"}, "offset '1e3'"),
        ({"offset": "9" * 400}, "offset '999"),
        ({"offset": "64"}, "has 100 bytes, 112 are needed"),
        ({"offset": str(10**15)}, "has 100 bytes"),
        ({"offset": str(2**62)}, "no place"),
        ({"length": "abc"}, "length 'abc'"),
        ({"length": "-5"}, "length '-5'"),
        ({"length": "40"}, "has 40 bytes in data, 48 are needed"),
        ({"length": "0"}, "has 0 bytes in data, 48 are needed"),
        ({"location": "da\0ta"}, "outside of its folder"),
        ({"location": "../data"}, "outside of its folder"),
        ({"location": "/etc/passwd"}, "outside of its folder"),
        ({"location": "absent"}, "is missing"),
        ({"location": ""}, "is missing"),
        ({"location": "loop"}, "can't be read|is missing"),
    ],
)
def test_places_that_are_none(tmp_path: Path, entries: dict[str, str], problem: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CompileError, match=problem) as caught:
        array_of(external(tmp_path, **entries), tmp_path / "m.onnx")
    assert caught.value.fix


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    tensor = external(tmp_path)
    tensor.data_type, tensor.dims[:] = TensorProto.INT4, [5]
    assert array_of(tensor, tmp_path / "m.onnx").shape == (5,)


def changed(**fields: Any) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    for name, value in fields.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data_type": 99}, "element type 99"),
        ({"data_type": 0}, "element type 0"),
        ({"data_type": TensorProto.STRING}, "holds texts"),
        ({"dims": [-4, 3]}, "has the shape"),
        ({"dims": [10**12, 3]}, "48 bytes, 12000000000000 are needed"),
        ({"dims": [2**62, 2**62]}, "48 bytes"),
        ({"dims": [4]}, "48 bytes, 16 are needed"),
        ({"raw_data": b"12"}, "2 bytes, 48 are needed"),
    ],
)
def test_numbers_that_are_not_as_told(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(CompileError, match=f"weight 'w': .*{problem}"):
        array_of(changed(**fields), Path("m.onnx"))


def test_numbers_in_a_list_that_are_not_as_told() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], float_data=[1.0] * 5)
    with pytest.raises(CompileError, match="is damaged"):
        array_of(tensor, Path("m.onnx"))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Constant", [], ["c"]),
        helper.make_node("Constant", [], ["c"], value_int=1, value_float=2.0),
        helper.make_node("Constant", [], ["c", "d"], value_int=1),
        helper.make_node("Constant", [], ["c"], value=3),
        helper.make_node("Constant", [], ["c"], value_string="x"),
        helper.make_node("Constant", [], [], value_int=1),
    ],
)
def test_a_constant_that_is_none(node: onnx.NodeProto) -> None:
    with pytest.raises(CompileError, match="constant"):
        constant_of(node, Path("m.onnx"))


def test_constants() -> None:
    made: list[tuple[str, Any]] = [
        ("value_int", 3),
        ("value_ints", [3, 4]),
        ("value_float", 0.5),
        ("value_floats", [0.5, 2]),
    ]
    for name, value in made:
        found = constant_of(helper.make_node("Constant", [], ["c"], **{name: value}), Path("m.onnx"))
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("what", ["input", "output", "type", "result", "weight"])
def test_a_file_whose_parts_do_not_fit(tmp_path: Path, what: str) -> None:
    """Beside an operator that the checker does not know, with which it gives up on the whole file."""
    other = helper.make_node("Own", ["hidden"], ["more"], domain="com.microsoft")
    path = save_model(tmp_path / "m.onnx", [*attention_nodes("x", "hidden"), other], attention_weights(), OUTPUTS)
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    if what == "input":
        model.graph.node[-1].input[0] = "nothing"
    elif what == "output":
        model.graph.output[0].name = "nothing"
    elif what == "type":
        model.graph.input[0].type.tensor_type.elem_type = 99
    elif what == "result":
        del model.graph.node[-1].output[:]
    else:
        model.graph.initializer[0].data_type = 99
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CompileError):
        compile_model(path, block_size=16)
