"""Engines whose products are rounded to 8 bits: what is rounded, what stays exact, and whole runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.accelerators.test_calibration import text, tokenizer
from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.calibration import run_on_host
from twoheads.export.accelerators.rewrites.quantise_products import quantise_products
from twoheads.export.accelerators.rewrites.smooth_channels import smooth_channels
from twoheads.export.accelerators.rewrites.split_synthetic import split_synthetic
from twoheads.export.emit.stock_attention import stock_model
from twoheads.export.progress import silent
from twoheads.export.verification.built_run import BuiltFor, open_built
from twoheads.export.verification.candidates import Candidate, try_candidate
from twoheads.export.verification.check import Reference
from twoheads.export.verification.collect import Question
from twoheads.export.verification.noise_floor import noise_floor
from twoheads.export.verification.report import AS_BUILT
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import AttentionEngine, StockEngine


def model(nodes: list[Any], inputs: dict[str, list[int]], outputs: dict[str, list[int]], **constants: Any) -> Any:
    kind = onnx.TensorProto.FLOAT
    given, results = (
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in side.items()] for side in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    made_nodes = [helper.make_node(operator, read, made, **facts) for operator, read, made, facts in nodes]
    graph = helper.make_graph(made_nodes, "g", given, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def projection() -> tuple[Any, dict[str, Any]]:
    """Two products of one input that has a row and a channel a thousand times as large as the others."""
    random = np.random.default_rng(0)
    x = random.standard_normal((16, 32)).astype(np.float32)
    x[3] *= 1000
    x[:, 5] *= 300
    nodes = [
        ("Gemm", ["x", "w", "b"], ["y"], {"transB": 1}),
        ("MatMul", ["x", "u"], ["z"], {}),
    ]
    w, u = random.standard_normal((24, 32)), random.standard_normal((32, 8))
    w[:, 5] /= 300  # as in models: a large channel meets small weights
    u[5] /= 300
    return model(nodes, {"x": [16, 32]}, {"y": [16, 24], "z": [16, 8]}, w=w, u=u, b=np.arange(24)), {"x": x}


def worst_row(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest distance of any row as a share of that row's own largest magnitude."""
    rows = [np.abs(found[n] - expected[n]).max(-1) / np.abs(expected[n]).max(-1) for n in expected]
    return float(max(np.max(row) for row in rows))


def test_smoothing_changes_nothing_but_sizes() -> None:
    engine, given = projection()
    smoothed = smooth_channels(engine, [given])
    assert worst_row(run_on_host(smoothed, [given])[0], run_on_host(engine, [given])[0]) < 1e-5
    factors = next(numpy_helper.to_array(t) for t in smoothed.graph.initializer if t.name == "x.factors")
    assert factors.argmin() == 5
    assert {t.name for t in smoothed.graph.initializer} == {"x.factors", "y.weight", "z.weight", "b"}


def test_large_rows_and_channels_take_no_levels_of_others() -> None:
    engine, given = projection()
    expected = run_on_host(engine, [given])[0]
    rounded = quantise_products(engine)
    both = quantise_products(smooth_channels(engine, [given]))
    errors = [worst_row(run_on_host(found, [given])[0], expected) for found in (rounded, both)]
    assert 1e-4 < errors[1] < 0.05 < errors[0]
    kinds = {t.name: t.data_type for t in both.graph.initializer}
    assert kinds["y.weight.int8"] == kinds["z.weight.int8"] == onnx.TensorProto.INT8
    assert "y.weight" not in kinds
    assert sum(node.op_type == "QuantizeLinear" for node in both.graph.node) == 1


def test_products_of_other_forms_stay_as_they_are() -> None:
    for attributes in ({"transA": 1}, {"alpha": 2.0}, {"beta": 0.5}):
        nodes = [("Gemm", ["x", "w"], ["y"], attributes)]
        engine = model(nodes, {"x": [8, 8]}, {"y": [8, 8]}, w=np.eye(8))
        assert [node.op_type for node in quantise_products(engine).graph.node] == ["Gemm"]
    engine = model([("MatMul", ["x", "w"], ["y"], {})], {"x": [8, 8]}, {"y": [8, 8]}, w=np.eye(8))
    engine.graph.node[0].name = "kept"
    assert [node.op_type for node in quantise_products(engine, ["kept"]).graph.node] == ["MatMul"]


def test_rows_of_zeros_stay_zeros() -> None:
    engine, given = projection()
    given["x"][2] = 0
    found = run_on_host(quantise_products(engine), [given])[0]
    np.testing.assert_array_equal(found["y"][2], np.arange(24))
    np.testing.assert_array_equal(found["z"][2], 0)


@pytest.mark.parametrize("codes", [0, 5])
@pytest.mark.parametrize("variant", ["full", "causal"])
def test_the_synthetic_coordinate_is_split_off_exactly_and_takes_no_levels(codes: int, variant: str) -> None:
    (tile,) = (engine for engine in make_program(Tiny()).engines if isinstance(engine, AttentionEngine))
    names = ("name", "q_num_heads", "kv_num_heads", "head_dim", "v_head_dim", "block_size", "key_tile", "scale")
    facts = {name: getattr(tile, name) for name in names}
    engine = StockEngine(**facts, code_size=codes, mask_heads=1, dtype="float32")
    random = np.random.default_rng(0)
    given = {port.name: random.standard_normal(port.shape).astype(np.float32) for port in engine.ports(variant)[0]}
    width = engine.head_dim
    given["q"][..., width] = -300  # a synthetic key that nobody sees: what is left are errors of the real ones
    given["k"][..., width] = 0
    given["k"][:, :, 0] = np.eye(engine.query_dim)[width]
    given["v"][..., -2:] = [1, 0]
    whole = stock_model(engine, variant)
    split = split_synthetic(whole, width, engine.v_head_dim)
    (expected,), (found,) = (run_on_host(one, [given]) for one in (whole, split))
    np.testing.assert_allclose(found["out"], expected["out"], rtol=1e-5, atol=1e-6)
    errors = [
        np.abs(run_on_host(quantise_products(one), [given])[0]["out"] - expected["out"]) for one in (whole, split)
    ]
    assert errors[1].mean() < errors[0].mean() / 5


def test_a_whole_run_in_8_bits_is_near_the_model(tmp_path: Path) -> None:
    tiny = Tiny(masks=("causal",))
    bundle = write_tiny(tmp_path / "b", tiny, tokenizer=tokenizer())
    built = build_target(bundle, "onnxruntime", calibrate=text(4000), check=True)
    assert 0 < max(artifact.error or 0 for artifact in built.entry.artifacts.values()) < 0.1
    tokens, want = random_tokens(tiny, 96, 0), reference(tiny, random_tokens(tiny, 96, 0))
    rows = {name: want[name].astype(np.float32) for name in ("hidden", "logits")}
    floors = {name: noise_floor(array, array) for name, array in rows.items()}
    loaded = open_built(bundle, "onnxruntime", threads=1)
    found = BuiltFor.of(loaded, "onnxruntime")
    assert (found.target, found.precision, found.runs_on) == ("onnxruntime", "int8", "onnxruntime-int8")
    candidate = Candidate("built", loaded, (Reference(AS_BUILT, "the model", rows, floors),), rows["logits"])
    outcome = try_candidate(candidate, Question({"tokens": tokens}, None, 96), silent)
    hidden, logits = outcome.checks
    assert hidden.passed
    assert all(run.as_foretold for run in outcome.runs)
    assert 1e-3 < hidden.relative < 0.05
    assert logits.top1_agreement is not None
    assert logits.top1_agreement > 0.8
    assert outcome.perplexity is not None
    assert 0 < abs(outcome.perplexity.bundle / outcome.perplexity.original - 1) < 0.05


def test_nothing_runs_what_no_emulator_has(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny())
    with pytest.raises(InputError, match="was not built for onnxruntime"):
        open_built(bundle, "onnxruntime")
    with pytest.raises(
        InputError, match="target ethos-u: nothing here runs its artifacts\n  fix: use one of: qnn, rknn"
    ):
        open_built(bundle, "ethos-u")
