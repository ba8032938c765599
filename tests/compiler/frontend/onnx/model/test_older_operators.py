"""Files of operator sets before 13 are read in set 13, and only where they compute the same there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

from tests.compiler.onnx_graphs import attention_nodes, attention_weights, save_model
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.onnx.model import older_operators
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load

HIDDEN: dict[str, list[int | str | None]] = {"hidden": ["batch", "tokens", 8]}


def _old(path: Path, opset: int = 11) -> Path:
    """Attention, with operators whose axes were attributes, and a softmax over axis 2."""
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=2),
        helper.make_node("Concat", ["right", "left"], ["turned"], axis=2),
        helper.make_node("Unsqueeze", ["turned"], ["deeper"], axes=[0]),
        helper.make_node("Squeeze", ["deeper"], ["again"], axes=[0]),
        helper.make_node("ReduceSum", ["again"], ["sums"], axes=[2], keepdims=1),
        helper.make_node("Div", ["again", "sums"], ["shares"]),
        *attention_nodes("shares", "hidden"),
    ]
    for node in nodes:
        if node.op_type == "Softmax":
            node.attribute[0].i = 2
    return save_model(path, nodes, attention_weights(), HIDDEN, opset=opset)


@pytest.mark.parametrize("opset", [9, 11])
def test_an_old_file_runs_as_onnx_runtime_runs_it(tmp_path: Path, opset: int) -> None:
    path = _old(tmp_path / "m.onnx", opset)
    bundle = write_bundle(compile_model(path, block_size=16), tmp_path / "bundle", generation=False)
    session: Any = onnxruntime.InferenceSession(str(path))
    for tokens in (1, 21):
        x = np.random.default_rng(tokens).random((1, tokens, 8), np.float32) + 0.5
        (want,) = session.run(None, {"x": x})
        got = load(bundle).run({"x": x}, output="hidden").array
        assert got is not None
        np.testing.assert_allclose(got, want[0], rtol=0, atol=2e-6 * np.abs(want).max())
    assert verify(bundle, path, length=21).passed


def test_a_softmax_over_several_axes_stays_one(tmp_path: Path) -> None:
    """Before set 13 a softmax was over its axis and all behind it."""
    nodes = [helper.make_node("Softmax", ["x"], ["hidden"], axis=1)]
    file = read_onnx(save_model(tmp_path / "m.onnx", nodes, {}, HIDDEN, opset=12))
    assert file.opsets[""] == 13
    assert {"Flatten", "Softmax", "Reshape"} <= {node.op_type for node in file.nodes}
    last = [helper.make_node("Softmax", ["x"], ["hidden"], axis=2)]
    assert [node.op_type for node in read_onnx(save_model(tmp_path / "n.onnx", last, {}, HIDDEN, opset=12)).nodes] == [
        "Softmax"
    ]


def test_weights_in_files_of_their_own_stay_there(tmp_path: Path) -> None:
    path = save_model(
        tmp_path / "m.onnx", attention_nodes("x", "hidden"), attention_weights(), HIDDEN, opset=12, external=True
    )
    base: Any = read_onnx(path).weights["wq"]
    np.testing.assert_array_equal(base, attention_weights()["wq"])
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_what_the_converter_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = version_converter.convert_version

    def wrong(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        made = convert(model, version)
        for node in made.graph.node:
            if node.op_type == "Concat":
                node.input[:] = reversed(list(node.input))
        return made

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    with pytest.raises(
        CompileError, match=r"operator set 11, older than 13, and what .* makes of it gives another hidden"
    ):
        read_onnx(_old(tmp_path / "m.onnx"))


def test_what_the_converter_can_not_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any) -> onnx.ModelProto:
        raise RuntimeError("No Adapter For Scan")

    monkeypatch.setattr(version_converter, "convert_version", unable)
    with pytest.raises(CompileError, match="can't bring it up to date: No Adapter For Scan") as refused:
        read_onnx(_old(tmp_path / "m.onnx"))
    assert "operator set 13" in refused.value.fix


def test_branches_of_an_old_file_are_refused(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(operator, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["x"], [operator])], operator, [], [result])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["asked"], to=TensorProto.BOOL),
        helper.make_node("If", ["asked"], ["hidden"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    with pytest.raises(CompileError, match=r"operator set 11.*holds branches or loops \(If\)"):
        read_onnx(save_model(tmp_path / "m.onnx", nodes, {}, HIDDEN, opset=11))


def test_a_file_that_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((3, 8), np.float32))
    weights = {"few": numpy_helper.to_array(table)}
    nodes = [helper.make_node("Add", ["x", "few"], ["hidden"])]
    with pytest.raises(CompileError, match="runs on none of the inputs"):
        read_onnx(save_model(tmp_path / "m.onnx", nodes, weights, HIDDEN, opset=11))


def test_inputs_that_no_trial_has_are_refused(tmp_path: Path) -> None:
    """Words are no numbers; and a picture is not tried with as many rows and columns as a sound has samples."""
    words: dict[str, tuple[int, list[int | str | None]]] = {
        "words": (TensorProto.STRING, ["batch", "tokens"]),
        "x": (TensorProto.FLOAT, ["batch", "tokens", 8]),
    }
    node = helper.make_node("Relu", ["x"], ["hidden"])
    with pytest.raises(CompileError, match="runs on none of the inputs"):
        read_onnx(save_model(tmp_path / "words.onnx", [node], {}, HIDDEN, inputs=words, opset=11))
    session: Any = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="x", type="tensor(float)", shape=["n", 3, "rows", "columns"])],
        run=lambda *_: pytest.fail("was tried"),
    )
    with pytest.raises(ValueError, match="16000, 16000"):
        dict(older_operators._example(session, 16000))


def test_what_the_converter_makes_and_does_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = version_converter.convert_version

    def wrong(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        made = convert(model, version)
        made.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 8]), "few"))
        made.graph.node[0].input[0] = "cut"
        made.graph.node.insert(0, helper.make_node("Reshape", ["x", "few"], ["cut"]))
        return made

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    with pytest.raises(CompileError, match=r"operator set 11, older than 13, and .* makes of it does not run: "):
        read_onnx(_old(tmp_path / "m.onnx"))


def test_what_paddle_does_not_know_is_no_name(tmp_path: Path) -> None:
    inputs: dict[str, tuple[int, list[int | str | None]]] = {"x": (TensorProto.FLOAT, [-1, 3, "?", "?"])}
    path = save_model(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["hidden"])], {}, HIDDEN, inputs=inputs)
    assert read_onnx(path).inputs[0].shape == (None, 3, None, None)
