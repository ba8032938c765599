"""Files of a fixed number of tokens: lifted, they are the file that was exported with dynamic axes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.zoo.exporting import VOCABULARY, export_model, small_model
from twoheads.compiler.frontend.onnx.bind_inputs import bind_inputs
from twoheads.compiler.frontend.onnx.capture import capture_onnx, lifted_graph
from twoheads.compiler.frontend.onnx.choose_outputs import model_outputs
from twoheads.compiler.frontend.onnx.lifts.token_arrays import alike, counts, multiples, triangle
from twoheads.compiler.frontend.onnx.model.graph import run_model
from twoheads.compiler.frontend.onnx.model.read_file import read_onnx
from twoheads.compiler.frontend.onnx.passes.fold import graph_of
from twoheads.graphs.errors import CompileError


def lifted(path: Path):
    bound = bind_inputs(read_onnx(path))
    wanted = list(model_outputs(bound.file, ()))
    return lifted_graph(
        bound, graph_of(bound.file.opsets, bound.file.nodes, bound.file.weights, wanted), wanted
    ), wanted


@pytest.mark.parametrize(("kind", "fixed"), [("bert", 128), ("llama", 32)])  # 32: also the width of the model
def test_a_fixed_file_lifted_is_the_dynamic_one(tmp_path, kind, fixed):
    output = "last_hidden_state" if kind == "bert" else "logits"
    dynamic, still = (
        export_model(small_model(kind), tmp_path / name, output=output, opset=17, dynamo=False, fixed=tokens)
        for name, tokens in (("dynamic.onnx", None), ("fixed.onnx", fixed))
    )
    graph, wanted = lifted(still)
    for tokens in (1, 19, fixed, 61):
        ids = np.random.default_rng(tokens).integers(0, VOCABULARY, (1, tokens))
        own = run_model(str(dynamic), {"input_ids": ids, "attention_mask": np.ones_like(ids)}, [output])[output]
        found = graph.run(wanted, {"input_ids": ids}, {})[wanted[0]]
        np.testing.assert_allclose(found, own, rtol=0, atol=2e-6 * np.abs(own).max())


def test_what_was_lifted_is_captured_with_its_mask(tmp_path):
    file = export_model(small_model("gpt2"), tmp_path / "fixed.onnx", output="logits", opset=17, dynamo=False, fixed=48)
    captured = capture_onnx(file)
    assert {str(node.mask) for node in captured.graph.attentions} == {"causal"}
    assert [entry.value.shape for entry in captured.graph.inputs if entry.source == "argument"] == [(1, "n")]


def fixed_file(path: Path, tokens: int, mixing: np.ndarray, *, attention: bool = True) -> Path:
    """Look-up, a product over the tokens by weights of the file, and a softmax, over pairs of tokens or not."""
    table = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["mixing", "rows"], ["mixed"]),
        *([
            helper.make_node("Einsum", ["rows", "rows"], ["pairs"], equation="bik,bjk->bij"),
            helper.make_node("Softmax", ["pairs"], ["scores"]),
            helper.make_node("MatMul", ["scores", "mixed"], ["last_hidden_state"]),
        ] if attention else [helper.make_node("Softmax", ["mixed"], ["last_hidden_state"])]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "fixed", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, tokens])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1, tokens, 8])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(mixing, "mixing")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_weights_over_tokens_are_refused_by_name(tmp_path):
    mixing = np.random.default_rng(1).standard_normal((40, 40)).astype(np.float32)
    with pytest.raises(CompileError, match=r"mixed.*MatMul does not run at another length.*40 tokens"):
        lifted(fixed_file(tmp_path / "mixer.onnx", 40, mixing))


def test_a_file_without_attention_is_refused_for_that(tmp_path):
    mixing = np.random.default_rng(1).standard_normal((40, 40)).astype(np.float32)
    with pytest.raises(CompileError, match=r"none of its 1 softmaxes is over pairs of its 40 tokens"):
        lifted(fixed_file(tmp_path / "mixer.onnx", 40, mixing, attention=False))


def test_a_file_that_has_no_mask_and_looks_ahead_is_refused(tmp_path):
    file = export_model(
        small_model("bert"), tmp_path / "fixed.onnx", output="last_hidden_state", opset=17, dynamo=False, fixed=40,
        mask=False,
    )  # fmt: skip
    with pytest.raises(CompileError, match="has no mask by which the others could be left out"):
        lifted(file)


def test_a_folded_triangle_and_a_row_of_one_number_have_no_end(tmp_path):
    table = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
    hidden = np.where(np.tri(40, dtype=bool), 0, -1e30).astype(np.float32)[None]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Add", ["rows", "same"], ["states"]),
        helper.make_node("Transpose", ["states"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["states", "keys"], ["products"]),
        helper.make_node("Add", ["products", "triangle"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "states"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(
        nodes, "fixed", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, 40])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1, 40, 8])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(hidden, "triangle"),
            numpy_helper.from_array(np.full((1, 40, 8), 0.5, np.float32), "same"),
        ],
    )  # fmt: skip
    path = tmp_path / "folded.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    found, wanted = lifted(path)
    ids = np.random.default_rng(3).integers(0, 11, (1, 67))
    states = table[ids[0]] + 0.5
    scores = np.where(np.tri(67, dtype=bool), states @ states.T, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    own = weights / weights.sum(1, keepdims=True) @ states
    np.testing.assert_allclose(found.run(wanted, {"input_ids": ids}, {})[wanted[0]][0], own, rtol=0, atol=1e-5)


def test_arrays_of_tokens_are_known_to_the_last_entry():
    line = np.arange(40, dtype=np.float32)[None, :, None]
    assert (multiples(line * np.float32(0.3), 40), counts(line[0, :, 0], 0), alike(line, [0, 2])) == (1, True, True)
    pairs = np.where(np.tri(40, dtype=bool), 0.0, -1e4)[None, None]
    assert [float(number) for number in triangle(pairs, (2, 3)) or ()] == [0.0, -1e4]
    line[0, -1] += 1e-3
    pairs[0, 0, -1, 0] = -1e4
    assert multiples(line, 40) is None
    assert not counts(line[0, :, 0], 0)
    assert not alike(line, [1])
    assert triangle(pairs, (2, 3)) is None
