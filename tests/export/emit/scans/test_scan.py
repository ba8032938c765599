"""The engines of scans against their mathematics in float64: chains of blocks, extreme decays, mutations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from twoheads.export.emit.scans import scan_graph
from twoheads.export.emit.scans.scan import FORMS, scan_model
from twoheads.graphs.program.engines.scan import STEP, ScanEngine, engine_problem, scan_chunk
from twoheads.graphs.program.engines.scan_operators import OPERATORS, ROWS

HEADS = {"groups": 2, "heads": 4, "key_dim": 8, "value_dim": 6}
CASES = {
    "conv": ("causal_conv", {"bias": 1, "channels": 5, "kernel": 4}),
    "conv-without-bias": ("causal_conv", {"bias": 0, "channels": 5, "kernel": 2}),
    "delta": ("gated_delta_rule", {"by_channel": 0, **HEADS}),
    "delta-alone": ("gated_delta_rule", {"by_channel": 0, **HEADS, "groups": 4}),
    "channels": ("gated_delta_rule", {"by_channel": 1, **HEADS}),
    "attention": ("decayed_attention", HEADS),
    "attention-alone": ("decayed_attention", {**HEADS, "groups": 4}),
    "diagonal": ("diagonal_scan", {"width": 7}),
    "selective": ("selective_scan", {"states": 4, "width": 7}),
    "maximum": ("max_scan", {"width": 7}),
}
BLOCKS = [(64, 64), (64, 16), (24, 8), (15, 1), (1, 1)]


def _engine(case: str, block: int, chunk: int) -> ScanEngine:
    operator, sizes = CASES[case]
    engine = ScanEngine("scan", operator, tuple(sorted(sizes.items())), block, chunk)
    assert engine_problem(engine, block) is None
    return engine


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(result) for result in _session(model).run(None, feeds)]


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString())


def _feeds(engine: ScanEngine, random: np.random.Generator, low: float, high: float):
    """Unit queries and keys, gates from 0 to 1, decays from ``-high`` to ``-low`` by magnitude."""
    feeds = {}
    for port in (*engine.tokens, *engine.weight_ports):
        array = random.standard_normal(port.shape)
        logs = random.uniform(np.log(low), np.log(high), port.shape)
        if port.name == "decay":
            array = -np.exp(logs)
        elif port.name == "dt":
            array = np.exp(logs)
        elif port.name == "a":
            array = -random.uniform(0.5, 16, port.shape)
        elif port.name == "beta":
            array = random.uniform(0, 1, port.shape)
        elif port.name in ("q", "k"):
            array /= np.linalg.norm(array, axis=-1, keepdims=True)
        feeds[port.name] = array.astype(np.float32)
    return feeds


def _error(engine: ScanEngine, model: onnx.ModelProto, low: float, high: float, blocks: int = 3) -> float:
    """The largest error of outputs and states of a chain of blocks, as a share of the largest magnitude."""
    session, random = _session(model), np.random.default_rng(0)
    state = np.zeros(engine.state.shape, np.float32)
    exact = state.astype(np.float64)
    first = _feeds(engine, random, low, high)
    weights = [first[port.name] for port in engine.weight_ports]
    worst = 0.0
    for _ in range(blocks):
        feeds = {**_feeds(engine, random, low, high), **{port.name: first[port.name] for port in engine.weight_ports}}
        y, state = session.run(None, {**feeds, "state": state})
        tokens = [feeds[port.name] for port in engine.tokens]
        wanted, exact = OPERATORS[engine.operator].apply(dict(engine.sizes), tokens, weights, exact)
        for found, expected in ((y, wanted), (state, exact)):
            worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return worst


@pytest.mark.parametrize(("block", "chunk"), BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_blocks_are_exact(case: str, block: int, chunk: int) -> None:
    engine = _engine(case, block, chunk)
    model = scan_model(engine)
    onnx.checker.check_model(model, full_check=True)
    assert _error(engine, model, 1e-3, 1) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(1e-4, 50), (1e-4, 1e-3), (20, 50)])
@pytest.mark.parametrize("case", CASES)
def test_extreme_decays_are_exact(case: str, low: float, high: float) -> None:
    engine = _engine(case, 64, 64)
    assert _error(engine, scan_model(engine), low, high) < 1e-6


@pytest.mark.parametrize("case", ["delta", "channels", "attention", "selective", "maximum"])
def test_long_chains_do_not_drift(case: str) -> None:
    engine = _engine(case, 16, 16)
    assert _error(engine, scan_model(engine), 1e-4, 1e-2, blocks=200) < 3e-6


@pytest.mark.parametrize("case", ["delta", "channels"])
def test_equal_keys_are_exact(case: str) -> None:
    """Their triangle has ones everywhere: powers of it would be binomials."""
    engine = _engine(case, 64, 64)
    feeds = _feeds(engine, np.random.default_rng(0), 1e-6, 1e-5)
    feeds["k"] = np.broadcast_to(feeds["k"][:, :, :1], feeds["k"].shape).copy()
    feeds["beta"] = np.ones_like(feeds["beta"])
    state = np.zeros(engine.state.shape, np.float32)
    y, _ = _run(scan_model(engine), {**feeds, "state": state})
    tokens = [feeds[port.name] for port in engine.tokens]
    wanted, _ = OPERATORS[engine.operator].apply(dict(engine.sizes), tokens, (), state)
    assert np.abs(y - wanted).max() / np.abs(wanted).max() < 2e-6


@pytest.mark.parametrize("case", ["delta", "channels", "attention", "diagonal", "maximum"])
def test_a_decay_of_everything_is_no_nan(case: str) -> None:
    engine = _engine(case, 16, 16)
    feeds = _feeds(engine, np.random.default_rng(0), 1e-3, 1)
    lost = {**feeds, "decay": np.full_like(feeds["decay"], -np.inf)}
    far = {**feeds, "decay": np.full_like(feeds["decay"], -1e4)}
    session, state = _session(scan_model(engine)), np.ones(engine.state.shape, np.float32)
    for one, other in zip(*(session.run(None, {**each, "state": state}) for each in (lost, far)), strict=True):
        assert np.isfinite(one).all()
        assert np.array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_no_control_flow_and_no_large_arrays(case: str) -> None:
    model = scan_model(_engine(case, 64, 64))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Scan", "Loop", "If", "CumSum"}
    assert {entry.domain for entry in model.opset_import} == {""}
    ranks = {
        len(value.type.tensor_type.shape.dim) for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert max(ranks) <= 4


def test_every_operator_has_a_form_and_a_case() -> None:
    assert FORMS.keys() == OPERATORS.keys() == {operator for operator, _ in CASES.values()}
    assert all(scan_chunk(operator, 256) in (1, 16, 64) for operator in OPERATORS)
    assert scan_chunk("gated_delta_rule", 24) == 8


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("case", CASES)
def test_tokens_that_are_not_there_leave_the_state(case: str, count: int) -> None:
    engine = _engine(case, 8, 8)
    feeds = _feeds(engine, np.random.default_rng(0), 1e-2, 1)
    state = np.random.default_rng(1).standard_normal(engine.state.shape).astype(np.float32)
    model = scan_model(engine, STEP)
    onnx.checker.check_model(model, full_check=True)
    y, after = _run(model, {**feeds, "state": state, "count": np.array([count])})
    operator, sizes = OPERATORS[engine.operator], dict(engine.sizes)
    axes = [shape.index(ROWS) for shape in operator.tokens(sizes).values()]
    tokens = [feeds[port.name].take(range(count), axis) for port, axis in zip(engine.tokens, axes, strict=True)]
    wanted, left = operator.apply(sizes, tokens, [feeds[port.name] for port in engine.weight_ports], state)
    found = y.take(range(count), operator.output(sizes).index(ROWS))
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(after, left, atol=1e-6 * np.abs(left).max())


@pytest.mark.parametrize(("case", "port"), [("delta", "decay"), ("channels", "decay"), ("attention", "decay")])
def test_a_decay_that_is_off_is_seen(case: str, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure of these tests finds a thousandth of a decay."""
    engine = _engine(case, 64, 16)
    decays = scan_graph.ScanGraph.decays
    wrong = lambda graph, *shape: graph.node("Mul", decays(graph, *shape), graph.constant(1.001))  # noqa: E731
    monkeypatch.setattr(scan_graph.ScanGraph, "decays", wrong)
    assert _error(engine, scan_model(engine), 1e-1, 1) > 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_state_that_is_lost_is_seen(case: str) -> None:
    engine = _engine(case, 16, 16)
    model = scan_model(engine)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == "state":
                node.input[at] = "nothing"
    zeros = onnx.numpy_helper.from_array(np.zeros(engine.state.shape, np.float32), "nothing")
    model.graph.initializer.append(zeros)
    assert _error(engine, model, 1e-3, 1) > 1e-3


def test_a_kernel_that_is_a_row_short_is_seen() -> None:
    engine = _engine("conv", 16, 1)
    feeds = _feeds(engine, np.random.default_rng(0), 1e-3, 1)
    short = replace(engine, sizes=(("bias", 1), ("channels", 5), ("kernel", 3)))
    y, _ = _run(scan_model(engine), {**feeds, "state": np.zeros(engine.state.shape, np.float32)})
    feeds["weight"] = feeds["weight"][:, 1:]
    other, _ = _run(scan_model(short), {**feeds, "state": np.zeros(short.state.shape, np.float32)})
    assert np.abs(y - other).max() > 1e-2
