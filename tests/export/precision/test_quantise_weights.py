"""Quantised weights: what is stored, that the compilation is exact for them, and what is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from tests.export.hand_made import hand_made, use_emitters
from tests.export.small_decoder import BLOCK, LENGTH, Decoder, save_attention, small_decoder
from twoheads.compiler import compile_model
from twoheads.export import quantise_weights, verify, write_bundle
from twoheads.export.accelerators.lint import lint_bundle
from twoheads.export.accelerators.target import load_target
from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.export.precision.number_formats import check_products
from twoheads.export.precision.quantised_arrays import dequantise, expanded, in_pieces, quantise
from twoheads.export.precision.quantised_engine import quantised_engine
from twoheads.export.verification import perplexity as next_tokens
from twoheads.export.verification.report import AS_IT_RUNS, ROUNDED_PRODUCTS
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import numbers_beside, quantised_ports, quantised_shapes
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return small_decoder()


@settings(max_examples=20, deadline=None)
@given(bits=st.sampled_from([4, 8]), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1e-36, 1e-3, 1.0, 1e30]))
def test_a_number_moves_by_half_a_step_at_most(bits: int, seed: int, scale: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((5, 96)) * scale).astype(np.float32)
    parts = quantise(weight, bits)
    assert tuple(part.shape for part in parts) == quantised_shapes(5, 96, bits)
    back = restored(parts)
    steps = parts[1].repeat(32, -1) * 0.5001
    assert (np.abs(back - weight) <= steps + 1e-44).all()
    assert np.abs(restored(quantise(back, bits)) - back).max() <= np.abs(back).max() * 1e-6


def restored(parts: tuple[Any, ...]) -> Any:
    values, scales, *zeros = parts
    return dequantise(values, scales, zeros[0] if zeros else None)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), levels=st.integers(1, 16), offset=st.floats(-20, 20))
def test_numbers_of_4_bits_stay_what_they_are(seed: int, levels: int, offset: float) -> None:
    """As a GGUF file has them: a scale and an offset for every 32."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(1e-3, 1, (7, 3, 1)).astype(np.float16).astype(np.float32)
    places = generator.integers(0, levels, (7, 3, 32))
    weight = (scales * (places + np.float32(offset))).astype(np.float32).reshape(7, 96)
    np.testing.assert_allclose(restored(quantise(weight, 4)), weight, rtol=0, atol=np.abs(weight).max() * 1e-6)


@pytest.mark.parametrize(
    ("weight_dtype", "products", "share"),
    [("int8", "float32", 0.35), ("int8", "int8", 0.32), ("int4", "float32", 0.28), ("int4", "int8", 0.28)],
)
def test_a_decoder(decoder: Decoder, tmp_path: Path, weight_dtype: str, products: str, share: float) -> None:
    module = decoder.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    compiled = quantise_weights(decoder.model, weight_dtype, products)
    bundle = write_bundle(compiled, tmp_path / "bundle", generation=False)
    report = verify(bundle, module, length=LENGTH)
    assert report.passed, report
    assert verify(bundle, module, length=BLOCK - 3).passed  # one call, by an engine of its own
    rounds = "" if products == "float32" else f", products {products}"
    assert report.precision == f"float32, weights {weight_dtype}{rounds}"
    assert report.check("hidden", AS_IT_RUNS).relative > 1e-3
    assert (report.check("hidden", ROUNDED_PRODUCTS).relative < 1e-5) == (weight_dtype == "int4" and not rounds)
    (perplexity,) = report.perplexities
    assert perplexity.tokens == LENGTH - 1
    assert perplexity.bundle == pytest.approx(perplexity.original, rel=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    manifest = read_bundle(bundle).manifest
    assert len(manifest.quantised) == 2 * 7 + 1
    assert {entry.bits for name, entry in manifest.quantised.items() if "layers" not in name} == {8}
    whole = sum(parameter.numel() * 4 for parameter in module.parameters())
    assert (bundle / "engines" / "weights.bin").stat().st_size < share * whole
    assert load(bundle).run(np.arange(9)).report.precision == report.precision


def test_a_wrong_scale_fails(decoder: Decoder, tmp_path: Path) -> None:
    bundle = write_bundle(quantise_weights(decoder.model, "int8"), tmp_path / "bundle", generation=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["quantised"]["model.layers.1.mlp.up_proj.weight"]["scales"] = ["model.layers.0.mlp.up_proj.weight:scales"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert not verify(bundle, decoder.module, length=LENGTH).passed


@pytest.mark.parametrize(("weight_dtype", "products"), [("int8", "float32"), ("int8", "int8"), ("int4", "float32")])
def test_weights_stored_by_columns(tmp_path: Path, weight_dtype: str, products: str) -> None:
    torch.manual_seed(6)
    module: Any = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=80, n_embd=64, n_layer=2, n_head=4)).eval()
    bundle = write_bundle(
        quantise_weights(compile_model(module, block_size=BLOCK), weight_dtype, products),
        tmp_path / "bundle",
        generation=False,
    )
    quantised = read_bundle(bundle).manifest.quantised
    assert quantised["transformer.h.0.attn.c_attn.weight"].transposed
    assert not quantised["lm_head.weight"].transposed
    assert not any("wpe" in name for name in quantised)  # read by positions
    assert verify(bundle, module, length=LENGTH).passed


def test_an_onnx_file(tmp_path: Path) -> None:
    file = save_attention(tmp_path)
    bundle = write_bundle(
        quantise_weights(compile_model(file, block_size=BLOCK), "int4"), tmp_path / "bundle", generation=False
    )
    quantised = read_bundle(bundle).manifest.quantised
    assert sorted(quantised) == ["wk", "wot", "wq", "wv"]  # the transposed weight is folded
    assert all(entry.transposed for entry in quantised.values())
    report = verify(bundle, file, length=LENGTH)
    assert report.passed, report


def test_nothing_to_quantise(monkeypatch: pytest.MonkeyPatch) -> None:
    use_emitters(monkeypatch)
    with pytest.raises(CompileError, match="no weight that can be quantised"):
        quantise_weights(hand_made(), "int8")  # its weights are 8 wide


@pytest.mark.parametrize("weight_dtype", ["same", "float32"])
def test_products_of_other_weights(weight_dtype: str) -> None:
    check_products("float32", weight_dtype=weight_dtype)
    for quantised in ("int8", "int4"):
        check_products("int8", weight_dtype=quantised)
    with pytest.raises(CompileError, match="add --weights int8 or --weights int4"):
        check_products("int8", weight_dtype=weight_dtype)


def test_a_weight_that_is_not_finite(decoder: Decoder) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weight = decoder.module.state_dict()[name].clone()
    weight[1, 2] = float("inf")
    made = quantise_weights(replace(decoder.model, weights={**decoder.model.weights, name: weight}), "int8")
    with pytest.raises(CompileError, match=r"layers\.0\.mlp\.up_proj\.weight: is not finite"):
        made.weights[f"{name}:int8"].read()


def test_what_reads_them_not(decoder: Decoder, tmp_path: Path) -> None:
    bundle = write_bundle(quantise_weights(decoder.model, "int4"), tmp_path / "bundle", generation=False)
    with pytest.raises(InputError, match="only onnxruntime reads"):
        load(bundle, backend="openvino")
    with pytest.raises(InputError, match="compile without --weights"):
        lint_bundle(read_bundle(bundle), load_target("qnn"))


def test_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((20, 7)).astype(np.float32)
    tokens = generator.integers(0, 7, 20)
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    expected = np.exp(-np.log(shares[np.arange(19), tokens[1:]]).mean())
    monkeypatch.setattr("twoheads.export.verification.noise_floor.CHUNK", 8 * 7)
    found, count = next_tokens.perplexity(logits, tokens)
    assert count == 19
    assert found == pytest.approx(expected)
    some, count = next_tokens.perplexity(logits[[0, 5, 19]], tokens, np.array([0, 5, 19]))
    assert count == 2
    assert some == pytest.approx(np.exp(-np.log(shares[[0, 5], tokens[[1, 6]]]).mean()))


def _long_rows(outer: int, tokens: int, inner: int = 4096) -> tuple[onnx.ModelProto, tuple[Port, ...]]:
    """An engine ``y = x w`` with a weight of 4 bits and long rows, and the weight's ports."""
    graph = GraphBuilder()
    graph.node("Gemm", "x", "w", transB=1, output="y")
    ports = [Port("x", "float32", (tokens, inner)), Port("w", "float32", (outer, inner))]
    model = graph.model("long", ports, [Port("y", "float32", (tokens, outer))])
    stored = quantised_ports(ports[1], 4, transposed=False, cut=True)
    return quantised_engine(model, {"w": stored}, {"w": 4}), stored


def test_long_rows_round_as_in_float32() -> None:
    """The kernel's own sum over 4,096 numbers is several times as far off."""
    random = np.random.default_rng(0)
    rows, weight = (random.standard_normal((count, 4096)).astype(np.float32) for count in (32, 64))
    made, stored = _long_rows(64, 32)
    parts = quantise(weight, 4)
    pieces = in_pieces(parts, cut=True)
    np.testing.assert_array_equal(expanded(pieces, transposed=False), dequantise(*parts))
    read = {name for node in made.graph.node if node.op_type == "Slice" for name in node.input}
    assert read.isdisjoint(port.name for port in stored), "sessions would cut, and copy, it whenever they open"
    for port, array in zip(stored, pieces, strict=True):
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, port.name))
    session = onnxruntime.InferenceSession(made.SerializeToString())
    found = np.asarray(session.run(None, {"x": rows})[0], np.float64)
    exact = rows.astype(np.float64) @ dequantise(*parts).astype(np.float64).T
    assert np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean()) < 5e-7


CALLED = """
import re, sys
from pathlib import Path
import numpy as np
from twoheads.graphs.program.engines.port import Port
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from twoheads.runtime.backends.protocol import EngineFile
def resident():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
x, y = (Port(name, "float32", (256, int(width))) for name, width in zip("xy", sys.argv[2:]))
backend = OnnxRuntimeBackend()
call = backend.load_engine(EngineFile(Path(sys.argv[1]), [x], [y], {})).new_call()
held = [np.ones(port.shape, port.dtype) for port in (x, y)]
call.bind_input(0, backend.tensor(held[0]))
call.bind_output(0, backend.tensor(held[1]))
before = resident()
for _ in range(3):
    call.run()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what is resident")
def test_a_call_takes_the_memory_that_the_plan_counts(tmp_path: Path) -> None:
    """Of rows in pieces two partial results are there at a time, and no second layout of all arrays."""
    made, stored = _long_rows(8192, 256)
    del made.graph.input[1:]
    for port in stored:
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(port.shape, port.dtype), port.name))
    onnx.save(made, tmp_path / "long.onnx")
    command = [sys.executable, "-c", CALLED, str(tmp_path / "long.onnx"), "4096", "8192"]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    read, given = 4 * 256 * 4096, 4 * 256 * 8192
    assert given < taken < 4 * 256 * numbers_beside(stored[-1]) + read + given
