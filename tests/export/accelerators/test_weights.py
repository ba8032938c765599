"""Weights of 8 and 4 bits: what they become, whole runs of them, and what they cost the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.export.accelerators.test_calibration import text, tokenizer
from tests.export.accelerators.test_int8 import model
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.export.accelerators import build, loss
from twoheads.export.accelerators.build import build_engines, build_target
from twoheads.export.accelerators.calibration import run_on_host
from twoheads.export.accelerators.compiler_process import find_compiler
from twoheads.export.accelerators.compress_weights import compress_weights
from twoheads.export.accelerators.loss import Loss, measure_loss, refuse_loss
from twoheads.export.accelerators.target import load_target
from twoheads.export.engines.jobs import engine_jobs
from twoheads.graphs.errors import CompileError, InputError
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny(masks=("causal",), layers=1)
WIDE = Tiny(masks=("causal",), layers=1, width=64, head_dim=16)
"""Whose weights are large enough for groups and palettes."""


def products(w: Any, u: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    nodes = [("Gemm", ["x", "w", "b"], ["y"], {"transB": 1}), ("MatMul", ["x", "u"], ["z"], {})]
    x = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    outputs = {"y": [16, len(w)], "z": [16, u.shape[1]]}
    return model(nodes, {"x": [16, 256]}, outputs, w=w, u=u, b=np.arange(len(w))), {"x": x}


def by_columns(columns: Any) -> Any:
    step = np.abs(columns).max(-1, keepdims=True) / np.float32(127)
    return np.rint(columns / step) * step


def by_blocks(columns: Any) -> Any:
    blocks = columns.reshape(len(columns), -1, 32)
    least = blocks.min(-1, keepdims=True)
    step = (blocks.max(-1, keepdims=True) - least) / np.float32(15)
    return (np.rint((blocks - least) / step) * step + least).reshape(columns.shape)


@pytest.mark.parametrize(("bits", "rounded"), [(8, by_columns), (4, by_blocks)])
def test_columns_are_rounded_by_their_own_numbers_or_each_32_of_them(bits: int, rounded: Any) -> None:
    random = np.random.default_rng(0)
    w, u = random.standard_normal((24, 256)), random.standard_normal((256, 8))
    w[:, 128:] *= 100  # in 4 bits the first half keeps its own scale
    engine, given = products(w, u)
    small = compress_weights(engine, bits)
    onnx.checker.check_model(small)
    found = run_on_host(small, [given])[0]
    w, u = w.astype(np.float32), u.astype(np.float32)
    np.testing.assert_allclose(found["y"], given["x"] @ rounded(w).T + np.arange(24), rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(found["z"], given["x"] @ rounded(u.T).T, rtol=1e-4, atol=1e-4)
    whole = {tensor.name: tensor for tensor in small.graph.initializer if tensor.name.endswith(".whole")}
    assert {len(tensor.raw_data) for tensor in whole.values()} == {24 * 256 * bits // 8, 8 * 256 * bits // 8}
    assert {tensor.name for tensor in small.graph.initializer} >= {"b"}
    assert "w" not in {tensor.name for tensor in small.graph.initializer}


def test_weights_that_have_few_values_lose_nothing() -> None:
    whole = np.random.default_rng(0).integers(-7, 8, (24, 256)).astype(np.float32)
    engine, given = products(whole / 8 + 0.3, whole[:8].T / 4)  # as a GGUF file's Q4_1 and Q4_0 have them
    (want,), (found,) = (run_on_host(one, [given]) for one in (engine, compress_weights(engine, 4)))
    for name in want:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=3e-5)


def test_the_head_and_columns_that_no_blocks_divide_have_8_bits(path: Path) -> None:
    engine, given = products(np.random.default_rng(0).standard_normal((24, 256)), np.ones((256, 8)))
    names = {tensor.name for tensor in compress_weights(engine, 4, ("w",)).graph.initializer}
    assert names >= {"w.w8.1.whole", "u.w4.0.whole"}
    scores = {job.name: job.scores for job in engine_jobs(read_bundle(path))}
    assert scores["lm"], "the head is in 4 bits"
    assert not scores["first"] | scores["last"]
    w = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    w[1] = 0
    engine = model([("Gemm", ["x", "w"], ["y"], {"transB": 1})], {"x": [2, 5]}, {"y": [2, 3]}, w=w)
    given = {"x": np.ones((2, 5), np.float32)}
    found = run_on_host(compress_weights(engine, 4), [given])[0]["y"]
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_allclose(found, given["x"] @ w.T, atol=0.05)


def test_blocks_of_equal_numbers_are_these_numbers() -> None:
    w = np.repeat([[0.0], [-0.3], [5.5]], 256, 1)
    engine, given = products(w, np.ones((256, 8)))
    small = compress_weights(engine, 4)
    np.testing.assert_allclose(
        run_on_host(small, [given])[0]["y"], given["x"] @ w.T.astype(np.float32) + np.arange(3), rtol=1e-5, atol=1e-4
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "b", TINY, tokenizer=tokenizer())


def test_a_whole_run_and_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MOST", -1.0)  # whatever it costs is too much, and allowed
    path, tokens = write_tiny(tmp_path / "b", WIDE, tokenizer=tokenizer()), random_tokens(WIDE, 75)
    want, sizes = reference(WIDE, tokens)["hidden"], dict[str, int]()
    for precision, most in (("fp32", 1e-5), ("w8", 0.02), ("w4", 0.5)):
        given = None if precision == "fp32" else text(2000)
        built = build_target(path, "openvino", precision=precision, calibrate=given, allow_loss=True)
        found = np.asarray(load(path, backend="openvino-ir", threads=1).run(tokens, output="hidden").array)
        error = np.linalg.norm(found - want) / np.linalg.norm(want)
        assert error < most
        assert precision == "fp32" or error > 1e-4
        sizes[precision] = sum(file.stat().st_size for file in (path / "targets" / "openvino").glob("*.bin"))
        if precision == "fp32":
            assert built.loss is None
            continue
        assert built.loss is not None
        assert (built.loss.measure, built.loss.tokens) == ("perplexity", 400)
        assert built.loss.after != built.loss.before
        assert built.entry.precision == precision
    assert sizes["w4"] < sizes["w8"] < sizes["fp32"]


@pytest.mark.parametrize(
    ("target", "precision", "backend", "most"),
    [
        ("coreml", "palette8", "coreml-weights", 0.05),
        pytest.param(
            "qnn",
            "w4a16",
            "qnn-emulator",
            0.5,
            marks=pytest.mark.long("test_engines_that_an_npu_garbles_in_whole_numbers_are_refused_unasked"),
        ),
        ("executorch", "w8a8", "executorch", 0.1),
    ],
)
def test_whole_runs_of_other_runtimes_and_what_they_cost(
    tmp_path: Path, target: str, precision: str, backend: str, most: float
) -> None:
    try:
        find_compiler(load_target(target))
    except InputError as error:
        pytest.skip(f"{error.problem}; {error.fix}")
    bundle = write_tiny(tmp_path / "b", WIDE, tokenizer=tokenizer())
    built = build_target(bundle, target, precision=precision, calibrate=text(400), allow_loss=True)
    assert built.loss is not None
    assert built.loss.after != built.loss.before
    tokens = random_tokens(WIDE, 75)
    want = reference(WIDE, tokens)["hidden"]
    found = np.asarray(load(bundle, backend=backend, threads=1).run(tokens, output="hidden").array)
    assert 1e-4 < np.linalg.norm(found - want) / np.linalg.norm(want) < most


def test_engines_that_an_npu_garbles_in_whole_numbers_are_refused_unasked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator's own numbers: this model's engines, with tanh between whole numbers, are right in it."""
    built = build_target(path, "qnn", precision="w8a16", calibrate=text(400), allow_loss=True)
    errors = [artifact.error for artifact in built.entry.artifacts.values()]
    assert all(error is not None and error < 0.02 for error in errors)
    monkeypatch.setattr(build, "_worst", lambda _precision: 1e-6)
    with pytest.raises(CompileError, match=r"refuses .*: its w8a16 values are off by \d+% of the largest"):
        build_target(
            write_tiny(path.parent / "c", TINY, tokenizer=tokenizer()), "qnn", precision="w8a16", calibrate=text(400)
        )


def test_what_ruins_the_model_is_refused_and_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MOST", -1.0)
    with pytest.raises(CompileError, match=r"(?s)ruins the model in w4: perplexity .* becomes .*--allow-loss"):
        build_target(path, "openvino", precision="w4", calibrate=text(2000))
    assert not read_bundle(path).manifest.targets


def test_what_nothing_here_measures_is_refused_before_anything_is_built(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_engines", lambda *_, **__: pytest.fail("it is built"))
    for target, precision in (("ethos-u", "int8"), ("openvino", "w4")):
        monkeypatch.setattr(loss, "measures", lambda *_: None)
        told = f"target {target}: nothing here runs what is built in {precision}, so that nothing tells what it costs"
        with pytest.raises(CompileError, match=told):
            build_target(path, target, precision=precision, calibrate=text(2000))


def test_a_device_that_is_not_here_is_measured_by_the_weights_on_one_that_is(path: Path, tmp_path: Path) -> None:
    """OpenVINO's NPU gets the same file of small weights as its CPU, which tells what they cost."""
    bundle, compiler = read_bundle(path), find_compiler(load_target("openvino"), None, "CPU")
    losses: list[Loss | None] = []
    for device in ("CPU", "NPU"):
        scratch = tmp_path / device
        scratch.mkdir()
        built = build_engines(bundle, "openvino", scratch, precision="w4", calibrate=text(400))
        entry = replace(built.entry, device=device)
        losses.append(measure_loss(bundle, "openvino", entry, scratch, compiler, text(400)))
    assert losses[0] is not None
    assert losses[0].after != losses[0].before
    assert losses[0] == losses[1]


def test_the_share_of_a_loss() -> None:
    assert Loss("perplexity", 10, 20.0, 21.0).share == pytest.approx(0.05)
    assert Loss("hidden states", 10, 0.0, 0.07).share == 0.07
    for one in (None, Loss("hidden states", 10, 0.0, 0.07)):
        refuse_loss(one, "t", "w4", allowed=True)
    with pytest.raises(CompileError, match=r"(?s)nothing here runs what is built in w4.*unmeasured by --allow-loss"):
        refuse_loss(None, "t", "w4", allowed=False)
    with pytest.raises(CompileError, match=r"target t: ruins the model in w4: hidden states are off, 7% where 5%"):
        refuse_loss(Loss("hidden states", 10, 0.0, 0.07), "t", "w4", allowed=False)
    with pytest.raises(CompileError, match="perplexity"):
        refuse_loss(Loss("perplexity", 10, 20.0, float("inf")), "t", "w4", allowed=False)
    with pytest.raises(CompileError, match="perplexity"):
        refuse_loss(Loss("perplexity", 10, 20.0, float("nan")), "t", "w4", allowed=False)


def test_a_text_has_to_tell_what_it_costs(path: Path) -> None:
    with pytest.raises(InputError, match="nothing tells what it costs"):
        build_target(path, "openvino", precision="w4")
    with pytest.raises(InputError, match="a fifth of the text has 0 tokens"):
        build_target(path, "openvino", precision="w8", calibrate="x")
    with pytest.raises(InputError, match="lose something, and fp32 has no use for it"):
        build_target(path, "openvino", calibrate=text(2000))


def test_small_weights_are_numbers_that_onnx_reads() -> None:
    engine, _ = products(np.eye(24, 256), np.ones((256, 8)))
    small = {t.name: numpy_helper.to_array(t) for t in compress_weights(engine, 4).graph.initializer}
    assert (small["u.w4.0.whole"].astype(np.int8) == 8).all()
