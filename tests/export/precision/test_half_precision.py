"""What half precision would garble stays on the host, or is brought into its range, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.rewrites.host_part import split_host_part
from twoheads.export.emit.tile_attention import attention_model
from twoheads.export.engines.jobs import engine_jobs
from twoheads.export.precision.half_constants import FAR, bring_into_half_range
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import AttentionEngine
from twoheads.runtime.bundle.reader import read_bundle

Array = npt.NDArray[Any]
FREQUENCIES = np.linspace(0.1, 1, 4).astype(np.float32)


def embedding(*, outputs=("rows", "cosine", "y")) -> onnx.ModelProto:
    """Tokens, positions and their table, a sine that is read again, and arithmetic on rows."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((9, 4)).astype(np.float32),
        "places": rng.standard_normal((3000, 4)).astype(np.float32),
        "frequencies": FREQUENCIES,
        "axis": np.array([1]),
        "offset": np.array(1),
    }
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Add", ["positions", "offset"], ["later"]),
        helper.make_node("Gather", ["places", "later"], ["placed"]),
        helper.make_node("Unsqueeze", ["positions", "axis"], ["column"]),
        helper.make_node("Cast", ["column"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "frequencies"], ["angles"]),
        helper.make_node("Cos", ["angles"], ["cosine"]),
        helper.make_node("Add", ["rows", "placed"], ["sum"]),
        helper.make_node("Mul", ["sum", "cosine"], ["turned"]),
        helper.make_node("Add", ["turned", "x"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [5]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, [5]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto | None, given: Mapping[str, Array]) -> dict[str, Array]:
    assert model is not None
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values: Any = session.run(None, {port.name: given[port.name] for port in session.get_inputs()})
    return {port.name: value for port, value in zip(session.get_outputs(), values, strict=True)}


def test_the_two_parts_are_the_engine_and_no_whole_number_reaches_the_accelerator():
    model = embedding()
    parts = split_host_part(model)
    assert parts.host is not None
    assert parts.accelerator is not None
    given: dict[str, Array] = {
        "tokens": np.arange(5),
        "positions": np.arange(2040, 2045),
        "x": np.ones((5, 4), np.float32),
    }
    host = run(parts.host, given)
    assert list(host) == ["rows", "placed", "cosine"]
    rest = run(parts.accelerator, {**given, **host})
    for name, value in run(model, given).items():
        np.testing.assert_array_equal({**host, **rest}[name], value)
    assert {port.type.tensor_type.elem_type for port in parts.accelerator.graph.input} == {TensorProto.FLOAT}
    assert [node.op_type for node in parts.accelerator.graph.node] == ["Add", "Mul", "Add"]
    assert not parts.accelerator.graph.initializer
    for part in (parts.host, parts.accelerator):
        onnx.checker.check_model(part, full_check=True)


def test_an_engine_of_numbers_alone_is_left_as_it_is_and_one_of_positions_alone_is_the_hosts():
    (inner,) = [part for part in [split_host_part(embedding()).accelerator] if part is not None]
    assert split_host_part(inner).accelerator is inner
    assert split_host_part(inner).host is None
    tables = embedding(outputs=("cosine",))
    del tables.graph.node[7:]
    parts = split_host_part(tables)
    assert parts.accelerator is None
    assert parts.host is not None
    assert [port.name for port in parts.host.graph.output] == ["cosine"]


def constant(value):
    tensors = [numpy_helper.from_array(np.array(value, np.float32), "c")]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [port], [helper.make_tensor_value_info("y", 1, [2])], tensors)
    return helper.make_model(graph)


def test_infinities_come_into_range_and_numbers_beyond_it_are_refused():
    (tensor,) = bring_into_half_range(constant([-np.inf, 1.0]), "e").graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [-FAR, 1.0]
    fine = constant([-60000.0, 1e-9])
    assert bring_into_half_range(fine, "e") is fine
    with pytest.raises(CompileError, match=r"e: c: holds 70000, and float16 ends at 65504"):
        bring_into_half_range(constant([7e4, -np.inf]), "e")


def test_a_hidden_row_is_empty_in_the_range_of_half_precision_too():
    engine = AttentionEngine("a", 2, 1, 4, 4, 8, 8, 0.5, 0.0, 1, "float32")
    model = bring_into_half_range(attention_model(engine, "masked_merge"), "a")
    rng = np.random.default_rng(0)
    given = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in engine.ports("masked_merge")[0]}
    given["mask"] = np.where(np.arange(8)[:, None] < 4, -np.inf, 0) * np.ones((1, 8, 8), np.float32)
    given["mask"] = np.nan_to_num(given["mask"], nan=0, neginf=-np.inf).astype(np.float32)
    found = run(model, given)
    np.testing.assert_array_equal(found["out"][:, :, :4], given["prev_out"][:, :, :4])
    np.testing.assert_array_equal(found["lse"][:, :, :4], given["prev_lse"][:, :, :4])
    whole = run(attention_model(engine, "masked_merge"), given)
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value)


def test_variants_that_need_more_range_are_not_built_in_half_precision(tmp_path):
    bundle = write_tiny(tmp_path / "b", Tiny())
    made = {job.name for job in engine_jobs(read_bundle(bundle))}
    half = {job.name for job in engine_jobs(read_bundle(bundle), half=True)}
    assert {name.partition(".")[2] for name in made - half} == {"full_add", "masked_add", "packed", "packed_causal"}
