"""Weights that engines of several sizes read: where they lie, and with the bits that copies of theirs have."""

from __future__ import annotations

import mmap
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.onnx_graphs import save_model
from tests.runtime.generation.decoders import bundle_folder, llama
from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export import quantise_weights, write_bundle
from twoheads.graphs.errors import BundleError, InternalError, TwoheadsError
from twoheads.graphs.program.program import Port, TokenwiseEngine
from twoheads.runtime import load
from twoheads.runtime.backends import onnxruntime_cpu
from twoheads.runtime.backends.onnxruntime_c import c_interface
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeEngine
from twoheads.runtime.backends.onnxruntime_shared import SharedEngine
from twoheads.runtime.backends.protocol import EngineFile
from twoheads.runtime.bundle.reader import read_bundle

LARGE = 2048
"""Rows and columns of an intermediate array: 17 MB."""


class Recording(OnnxRuntimeBackend):
    """Keeps how the weights of what is opened are held, by the engine's name."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, str] = {}

    def load_engine(self, file: EngineFile) -> OnnxRuntimeEngine | SharedEngine:
        engine = super().load_engine(file)
        if isinstance(engine, SharedEngine):
            self.held[file.path.stem] = "shared"
            assert engine.weights is self._shared
        elif file.weights:
            entry = engine.session.get_session_options().get_session_config_entry
            try:
                self.held[file.path.stem] = "in place" if entry("session.disable_prepacking") == "1" else "packed"
            except RuntimeError:  # no such entry
                self.held[file.path.stem] = "packed"
        return engine


@cache
def _compiled(block: int) -> CompiledModel:
    return compile_model(llama(), block_size=block)


@pytest.fixture
def both() -> Path:
    """A bundle with engines of runs, in blocks of 128, and of steps."""
    return bundle_folder("llama", 128)


def _runs(bundle: Any, length: int, **options: Any) -> tuple[Any, Any, dict[str, str], dict[str, str]]:
    """Hidden states, logits of a context's last token, and how weights are held: those of runs, and of steps."""
    backend = Recording()
    loaded = load(bundle, threads=1, backend=backend, **options)
    tokens = np.random.default_rng(0).integers(0, 64, length)
    hidden, logits = loaded.run(tokens, output="hidden").array, None
    if (bundle / "engines" / "step_8_head.onnx").exists():
        with loaded.open_context() as context:
            context.append(tokens)
            logits = context.step(3)
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name, how in backend.held.items():
        sides[name.startswith("step_")][name] = how
    return hidden, logits, *sides


def _but_heads(held: dict[str, str]) -> set[str]:
    """How all weights are held but those of heads, which are in place."""
    heads = {name for name in held if name.endswith("head")}
    assert {held[name] for name in heads} <= {"in place"}
    return {how for name, how in held.items() if name not in heads}


@pytest.mark.skipif(c_interface() is None, reason="this package of ONNX Runtime brings no library")
def test_runs_and_steps_share_packed_float32_weights(both: Path, tmp_path: Path) -> None:
    found, logits, runs, steps = _runs(both, 300)
    expected, _, packed, none = _runs(write_bundle(_compiled(128), tmp_path / "runs", generation=False), 300)
    assert _but_heads(runs) == _but_heads(steps) == {"shared"}
    assert any(name.endswith("head") for name in steps)
    assert (set(packed.values()), none) == ({"packed"}, {})
    np.testing.assert_array_equal(found, expected)
    limited = _runs(both, 300, memory_limit=1 << 40)  # runs let go of what they packed, the system of steps' pages
    assert (_but_heads(limited[2]), set(limited[3].values())) == ({"packed"}, {"in place"})
    np.testing.assert_array_equal(limited[0], found)
    np.testing.assert_allclose(limited[1], logits, rtol=0, atol=2e-5 * np.abs(logits).max())


def test_runs_and_steps_read_the_same_float32_weights(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cpu, "c_interface", lambda: None)
    _, _, runs, steps = _runs(both, 300)
    assert set(runs.values()) == set(steps.values()) == {"in place"}
    _, _, runs, steps = _runs(write_bundle(_compiled(16), tmp_path / "b"), 40)  # small blocks are faster packed
    assert (set(runs.values()), set(steps.values())) == ({"packed"}, {"in place"})


@pytest.mark.skipif(c_interface() is None, reason="this package of ONNX Runtime brings no library")
def test_packed_weights_are_shared_to_the_bit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(quantise_weights(_compiled(16), "int4"), tmp_path / "b")
    hidden, logits, runs, steps = _runs(bundle, 40)
    assert set(runs.values()) == set(steps.values()) == {"shared"}
    limited = _runs(bundle, 40, memory_limit=1 << 40)  # whose engines are closed to let weights go
    assert (set(limited[2].values()), set(limited[3].values())) == ({"packed"}, {"shared"})
    monkeypatch.setattr(onnxruntime_cpu, "c_interface", lambda: None)
    alone = _runs(bundle, 40)
    assert set(alone[2].values()) == set(alone[3].values()) == {"packed"}
    for other in (limited, alone):
        np.testing.assert_array_equal(other[0], hidden)
        np.testing.assert_array_equal(other[1], logits)


@pytest.mark.skipif(c_interface() is None, reason="this package of ONNX Runtime brings no library")
def test_a_shared_engine_refuses_what_its_ports_do_not_take(tmp_path: Any) -> None:
    bundle = read_bundle(write_bundle(quantise_weights(_compiled(16), "int4"), tmp_path / "b"))
    (stage,) = bundle.program.head
    engine = bundle.program.engine_of(TokenwiseEngine, stage.engine)
    weights = dict(zip((p.name for p in engine.weights), bundle.open_weights().views(stage.weights), strict=True))
    backend, path = OnnxRuntimeBackend(), bundle.file(bundle.engine_file(engine.name))
    file = EngineFile(path, engine.inputs, engine.outputs, weights, own_weights=True, shared=True)
    call = backend.load_engine(file).new_call()
    with pytest.raises(InternalError, match=r"float32 \[3, 5\] for the port"):
        call.bind_input(0, backend.tensor(np.zeros((3, 5), np.float32)))
    with pytest.raises(InternalError, match="float64"):
        call.bind_input(0, backend.tensor(np.zeros(engine.inputs[0].shape, np.float64)))
    with pytest.raises(BundleError, match="the program expects"):
        backend.load_engine(replace(file, inputs=(replace(engine.inputs[0], dtype="float64"),)))
    with pytest.raises(BundleError, match="can't open it"):
        backend.load_engine(replace(file, path=tmp_path / "none.onnx"))
    with pytest.raises(TwoheadsError, match="an engine call failed"):
        call.run()  # nothing is bound


TURNED = [
    helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
    helper.make_node("Add", ["turned", "matrix"], ["sum"]),
    helper.make_node("Mul", ["sum", "row"], ["product"]),
    helper.make_node("Cast", ["bytes"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("Sub", ["product", "numbers"], ["difference"]),
    helper.make_node("Transpose", ["difference"], ["y"], perm=[0, 2, 1]),
]
"""Both transpositions cancel, once the second has moved to the first, past three weights."""


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_weights_that_are_lent_are_not_turned(quantised: bool, own: bool, shared: bool, tmp_path: Any) -> None:
    draw = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "matrix": draw.standard_normal((1, 8, 8)).astype(np.float32),
        "row": draw.standard_normal(8).astype(np.float32),
        "bytes": draw.integers(0, 9, (1, 8, 8)).astype(np.uint8 if quantised else np.int8),
    }
    given = {"x": (TensorProto.FLOAT, [1, 8, 8])}
    path = save_model(tmp_path / "m.onnx", TURNED, weights, {"y": [1, 8, 8]}, inputs=given, external=True)
    ports = [Port(name, "float32", (1, 8, 8)) for name in "xy"]
    backend, x, y = OnnxRuntimeBackend(), draw.standard_normal((1, 8, 8)), np.zeros((1, 8, 8), np.float32)
    call = backend.load_engine(
        EngineFile(path, ports[:1], ports[1:], weights, own_weights=own, shared=shared)
    ).new_call()
    result = backend.tensor(y)
    call.bind_input(0, backend.tensor(x.astype(np.float32)))
    call.bind_output(0, result)
    call.run()
    expected = ((x.swapaxes(1, 2) + weights["matrix"]) * weights["row"] - weights["bytes"]).swapaxes(1, 2)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what the process holds from /proc")
def test_an_engine_that_frees_gives_back_what_calls_of_others_took(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE

    def opened(name: str, rows: int, **how: Any) -> Any:
        shape = [1, rows]
        nodes = [
            helper.make_node("Expand", ["x", "many"], ["wide"]),
            helper.make_node("Exp", ["wide"], ["more"]),
            helper.make_node("ReduceSum", ["more", "axis"], ["y"]),
        ]
        constants = {"many": np.array([LARGE, rows]), "axis": np.array([0])}
        path = save_model(tmp_path / name, nodes, constants, {"y": shape}, inputs={"x": (TensorProto.FLOAT, shape)})
        port = Port("x", "float32", (1, rows))
        call = backend.load_engine(EngineFile(path, (port,), (replace(port, name="y"),), {}, **how)).new_call()
        for bind in (call.bind_input, call.bind_output):
            bind(0, backend.tensor(np.zeros((1, rows), np.float32)))
        return call

    backend = OnnxRuntimeBackend()
    opened("large.onnx", LARGE).run()
    held = resident()
    opened("other.onnx", 1).run()
    assert resident() > held - LARGE * LARGE
    opened("frees.onnx", 1, frees=True).run()
    assert resident() < held - 3 * LARGE * LARGE
