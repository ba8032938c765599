"""What is read of an ONNX file, and what is refused, by name and with a remedy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler.frontend.onnx.bind_inputs import bind_inputs
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.graphs.errors import CompileError

OUTPUTS: dict[str, list[int | str | None]] = {"hidden": ["batch", "tokens", 8]}


def _node(operator, inputs=("hidden",), **attributes):
    return helper.make_node(operator, list(inputs), ["more"], name="the_node", **attributes)


def test_external_weights_are_mapped_not_copied(tmp_path):
    weights = attention_weights()
    path = save_model(tmp_path / "m.onnx", attention_nodes("x", "hidden"), weights, OUTPUTS, external=True)
    read = read_onnx(path)
    for name, array in weights.items():
        np.testing.assert_array_equal(read.weights[name], array)
        base = read.weights[name]
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_missing_weights_are_named(tmp_path, damage):
    path = save_model(tmp_path / "m.onnx", attention_nodes("x", "hidden"), attention_weights(), OUTPUTS, external=True)
    data = tmp_path / "m.onnx.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(CompileError, match=r"m\.onnx\.data"):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"GGUF....", b"\x08\x07 no model"])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CompileError, match="ONNX file"):
        read_onnx(path)


def _branch(operator, inputs, **attributes):
    """An ``If`` whose branches hold an operator."""
    inner = helper.make_node(operator, inputs, ["inner"], **attributes)
    branch = helper.make_graph([inner], "branch", [], [onnx.ValueInfoProto(name="inner")])
    return helper.make_node("If", ["x"], ["more"], name="the_node", then_branch=branch, else_branch=branch)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("LSTM", ("hidden", "wq", "wk"), hidden_size=8), "is a recurrence whose state goes through gates"),
        (_branch("GRU", ("hidden", "wq", "wk"), hidden_size=8), "holds GRU, which is a recurrence"),
        (_branch("Neg", ("hidden",)), "is control flow: what x holds, or its shape, decides"),
        (_node("RandomNormalLike"), "random"),
        (helper.make_node("Own", ["hidden"], ["more"], name="the_node", domain="mine"), "operator set 'mine'"),
    ],
)
def test_operators_that_no_compiler_can_take_are_refused_by_name(tmp_path, node, reason):
    path = save_model(tmp_path / "m.onnx", [*attention_nodes("x", "hidden"), node], attention_weights(), OUTPUTS)
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, str(path))
    with pytest.raises(CompileError, match=reason) as refused:
        read_onnx(path)
    assert "the_node" in refused.value.where
    assert refused.value.fix


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CompileError, match="can't be read"):
        read_onnx(tmp_path)


def test_half_precision_counts_as_float32(tmp_path):
    weights = {name: array.astype(np.float16) for name, array in attention_weights().items()}
    path = save_model(
        tmp_path / "m.onnx", attention_nodes("x", "hidden"), weights, {},
        inputs={"x": (TensorProto.FLOAT16, ["batch", "tokens", 8])},
    )  # fmt: skip
    model = onnx.load(str(path))
    model.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT16, ["batch", "tokens", 8]))
    onnx.save(model, str(path))
    read = read_onnx(path)
    assert read.half
    assert read.inputs[0].dtype == "float32"
    assert read.weights["wq"].dtype == np.float16  # referenced; converted where it is used


def _bound(tmp_path, **inputs):
    ids = {"input_ids": (TensorProto.INT64, ["batch", "tokens"])}
    nodes = [helper.make_node("Cast", [name], [f"{name}_out"], to=TensorProto.FLOAT) for name in (*ids, *inputs)]
    outputs: dict[str, list[int | str | None]] = {
        f"{name}_out": [None] * len(kind[1]) for name, kind in (ids | inputs).items()
    }
    return bind_inputs(read_onnx(save_model(tmp_path / "m.onnx", nodes, {}, outputs, inputs=ids | inputs)))


def test_masks_types_positions_and_pasts_are_bound(tmp_path):
    tokens = (TensorProto.INT64, ["batch", "tokens"])
    bound = _bound(
        tmp_path,
        attention_mask=tokens,
        token_type_ids=tokens,
        position_ids=tokens,
        past_key_values=(TensorProto.FLOAT, ["batch", 2, "past", 4]),
    )
    assert [(a.value.name, a.value.shape) for a in bound.arguments] == [("input_ids", (1, "n"))]
    assert bound.file.weights["past_key_values"].shape == (1, 2, 0, 4)
    made = {name for node in bound.file.nodes for name in node.output}
    assert {"attention_mask", "token_type_ids", "position_ids"} <= made


def test_a_decoder_has_its_own_axis(tmp_path):
    tokens = (TensorProto.INT64, ["batch", "other"])
    bound = _bound(tmp_path, decoder_input_ids=tokens)
    assert {a.value.name: a.value.axis for a in bound.arguments} == {"input_ids": "m", "decoder_input_ids": "n"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ((TensorProto.FLOAT, ["batch", "width", "height"]), "two dimensions without a number"),
        ((TensorProto.FLOAT, [99, "tokens", 8]), "fixed batch of 99"),
        ((TensorProto.FLOAT, []), "single number"),
    ],
)
def test_inputs_of_unknown_shape_are_refused(tmp_path, kind, reason):
    with pytest.raises(CompileError, match=reason):
        _bound(tmp_path, features=kind)


@pytest.mark.parametrize("text", [b"Softmax", b"hidden"])
def test_names_that_are_no_text_are_refused(tmp_path, text):
    path = save_model(tmp_path / "m.onnx", attention_nodes("x", "hidden"), attention_weights(), OUTPUTS)
    data = path.read_bytes()
    assert text in data
    path.write_bytes(data.replace(text, b"\xff" + text[1:]))
    with pytest.raises(CompileError, match=r"has a \w+ that is no text"):
        read_onnx(path)
