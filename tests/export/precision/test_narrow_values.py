"""Bundles of float16: what is narrow, that the compilation is exact for the rounded weights, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.export.accelerators.rewrites import test_scale_squares as scale_squares
from tests.export.conftest import Ran
from tests.export.small_decoder import BLOCK, LENGTH, save_attention, small_decoder
from tests.runtime.device.simulated_backend import SimulatedBackend
from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export import narrow_values, quantise_weights, verify, write_bundle
from twoheads.export.accelerators.lint import lint_bundle
from twoheads.export.accelerators.target import load_target
from twoheads.export.precision.narrow_engine import narrow_engine, widen_engine
from twoheads.export.verification.report import AS_IT_RUNS, ROUNDED_PRODUCTS
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.runtime import Job, load
from twoheads.runtime.bundle.reader import read_bundle

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
TOKENS = np.arange(LENGTH) * 31 % 97


@dataclass(frozen=True)
class Narrowed:
    """A module, its compilation in float32, and a bundle of float16."""

    module: Any
    model: CompiledModel
    bundle: Path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Narrowed:
    small = small_decoder()
    bundle = write_bundle(narrow_values(small.model), tmp_path_factory.mktemp("half") / "bundle", generation=False)
    return Narrowed(small.module, small.model, bundle)


def opened(path: Path, **options: Any) -> Any:
    """The bundle, its results' arrays of no declared type."""
    return load(path, **options)


@pytest.mark.parametrize("length", [LENGTH, BLOCK - 3])  # rows of tiles, and one call by an engine of its own
def test_a_decoder(decoder: Narrowed, length: int) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.module.state_dict().items()}
    report = verify(decoder.bundle, decoder.module, length=length)
    assert report.passed, report
    assert report.precision == "float16"
    assert 1e-4 < report.check("hidden", ROUNDED_PRODUCTS).relative < 1e-3
    assert report.check("hidden", AS_IT_RUNS).ratio > 100
    (perplexity,) = report.perplexities
    assert perplexity.bundle == pytest.approx(perplexity.original, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.module.state_dict().items())


def test_the_program_is_the_golden_one(decoder: Narrowed) -> None:
    """Sines of positions, attention's outputs, logits, norms and frequencies are float32, all else is float16."""
    assert print_program(read_bundle(decoder.bundle).program) == (GOLDEN / "half_llama.program").read_text(
        encoding="utf-8"
    )


def test_weights_take_half_of_the_space(decoder: Narrowed) -> None:
    whole = sum(parameter.numel() * 4 for parameter in decoder.module.parameters())
    assert (decoder.bundle / "engines" / "weights.bin").stat().st_size < 0.51 * whole
    programs = (read_bundle(decoder.bundle).program, decoder.model.program)
    narrow, wide = (make_schedule(program, 2000, output="hidden").memory.values for program in programs)
    assert narrow < 0.7 * wide


def test_a_weight_that_is_not_the_rounded_one_fails(decoder: Narrowed, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = {**decoder.model.weights, name: decoder.module.state_dict()[name] * 1.001}
    bundle = write_bundle(narrow_values(replace(decoder.model, weights=weights)), tmp_path / "bundle", generation=False)
    assert not verify(bundle, decoder.module, length=LENGTH).passed


def test_openvino_runs_it(decoder: Narrowed) -> None:
    pytest.importorskip("openvino")
    for length in (LENGTH, 5):
        ours, other = (
            opened(decoder.bundle, backend=name).run(TOKENS[:length]) for name in ("onnxruntime", "openvino")
        )
        np.testing.assert_allclose(other.array, ours.array, atol=2e-3 * np.abs(ours.array).max())


def test_files_jobs_and_a_device_change_nothing(decoder: Narrowed, tmp_path: Path) -> None:
    plain = opened(decoder.bundle)
    want = plain.run(TOKENS, output="hidden")
    assert want.array.dtype == np.float32
    spilled = opened(decoder.bundle, spill=tmp_path, fused=False).run(TOKENS, output="hidden")
    np.testing.assert_array_equal(spilled.array, want.array)
    with Job(tmp_path / "job") as job:
        np.testing.assert_array_equal(plain.run_job(job, TOKENS, "hidden").array, want.array)
    simulated = opened(decoder.bundle, backend=SimulatedBackend()).run(TOKENS, output="hidden")
    np.testing.assert_allclose(simulated.array, want.array, atol=2e-3 * np.abs(want.array).max())
    both = plain.run([TOKENS[:9], TOKENS], output="hidden")
    np.testing.assert_allclose(both[1].array, want.array, atol=2e-3 * np.abs(want.array).max())


def test_values_beyond_the_range_are_refused(decoder: Narrowed, tmp_path: Path) -> None:
    names = [f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down")]
    weights = {name: decoder.module.state_dict()[name] * 4e4 for name in names}
    model = narrow_values(replace(decoder.model, weights={**decoder.model.weights, **weights}))
    bundle = write_bundle(model, tmp_path / "bundle", generation=False)
    for length in (LENGTH, 5):
        with pytest.raises(InputError, match=r"(?s)float16's range.*--dtype fp32"):
            opened(bundle).run(TOKENS[:length])
    with pytest.raises(InputError, match="float16's range"):
        opened(bundle, backend=SimulatedBackend()).run(TOKENS)


@pytest.mark.parametrize("length", [LENGTH, BLOCK - 3])
def test_logits_beyond_the_range_are_refused(decoder: Narrowed, tmp_path: Path, length: int) -> None:
    """The hidden states are fine, and weights of the head too; their products are not."""
    name = "lm_head.weight"
    weights = {**decoder.model.weights, name: torch.full_like(decoder.module.state_dict()[name], 6e4)}
    bundle = opened(
        write_bundle(narrow_values(replace(decoder.model, weights=weights)), tmp_path / "bundle", generation=False)
    )
    assert np.isfinite(bundle.run(TOKENS[:length], "hidden").array).all()
    for output in ("logits", "last"):
        with pytest.raises(InputError, match=r"(?s)the result.*float16's range.*--dtype fp32"):
            bundle.run(TOKENS[:length], output)


def test_a_weight_beyond_the_range_is_refused(decoder: Narrowed) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for number in (1e5, float("nan")):
        weight = decoder.module.state_dict()[name].clone()
        weight[1, 2] = number
        with pytest.raises(CompileError, match=r"layers\.0\.mlp\.up_proj\.weight"):
            narrow_values(replace(decoder.model, weights={**decoder.model.weights, name: weight}))


def test_what_does_not_go_together(decoder: Narrowed) -> None:
    with pytest.raises(CompileError, match="already"):
        narrow_values(narrow_values(decoder.model))
    with pytest.raises(CompileError, match="one of --dtype and --weights"):
        narrow_values(quantise_weights(decoder.model, "int8"))
    with pytest.raises(CompileError, match="'stock'"):
        narrow_values(replace(decoder.model, lowering="stock"))
    with pytest.raises(InputError, match="compile without --dtype"):
        lint_bundle(read_bundle(decoder.bundle), load_target("qnn"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bf16"], "--backend openvino --precision bf16"),
        (["fp16", "--lowering", "oracle"], "--lowering tile"),
        (["fp16", "--weights", "int4"], "leave out one of --dtype and --weights"),
        (["fp16", "--for", "tensorrt"], "twoheads build --precision"),
    ],
)
def test_the_command_line_refuses(cli: Any, tiny_llama: Path, tmp_path: Path, words: list[str], message: str) -> None:
    ran: Ran = cli("compile", tiny_llama, "-o", tmp_path / "bundle", "--dtype", *words)
    assert message in ran.refused()


def test_an_onnx_file_by_the_command_line(cli: Any, tmp_path: Path) -> None:
    """A transposed weight is folded, and rounded then."""
    file = save_attention(tmp_path)
    bundle = tmp_path / "bundle"
    made = cli("compile", file, "-o", bundle, "--block-size", BLOCK, "--dtype", "fp16", "--json").json
    assert (made["dtype"], made["weight_dtype"]) == ("float16", "float16")
    stored = {name: entry.dtype for name, entry in read_bundle(bundle).manifest.weights.items()}
    assert stored == {"wq": "float16", "wk": "float16", "wv": "float16", "wot": "float16", "bias": "float32"}
    shown = cli("verify", bundle, "--against", file, "--length", LENGTH)
    assert shown.code == 0
    assert "noise floors" in shown.out
    assert "float16" in cli("inspect", bundle).out


def test_products_of_positions_stay_float32(tmp_path: Path) -> None:
    """Position 3,000 times a frequency: float16 has no such number."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(32, 32)
            self.frequencies = torch.nn.Parameter(1e4 ** -torch.linspace(0, 1, 32)[None])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            at = torch.arange(x.shape[1]).float()[:, None]
            x = self.project(x + torch.sin(at @ self.frequencies))
            return x + torch.nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]

    torch.manual_seed(3)
    module = Model().eval()
    x = torch.randn(1, 3000, 32)
    model = narrow_values(compile_model(module, example_inputs=(x[:, :40],), block_size=512))
    bundle = write_bundle(model, tmp_path / "bundle", generation=False)
    assert read_bundle(bundle).manifest.weights["frequencies"].dtype == "float32"
    with torch.no_grad():
        want = module(x)[0].numpy()
    got = opened(bundle).run(x[0].numpy(), output="hidden").array
    assert np.abs(got - want).max() < 5e-3


def test_norms_hold_the_squares_of_large_channels() -> None:
    """A row with a channel of 22,000, of which float16 has no square, as decoders have: norms are float32."""
    narrow, x = narrow_engine(scale_squares.model(), {"x", "y"}, ()), scale_squares.rows().astype(np.float16)
    expected = scale_squares.run(scale_squares.model(), x.astype(np.float32))
    session = onnxruntime.InferenceSession(narrow.SerializeToString(), providers=["CPUExecutionProvider"])
    for found in (*session.run(None, {"x": x}), *ReferenceEvaluator(narrow).run(None, {"x": x})):
        assert np.asarray(found).dtype == np.float16
        np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-3, atol=1e-6)


def test_a_result_that_products_alone_read_is_never_widened() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gemm", ["x", "a", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["large"]),
        helper.make_node("MatMul", ["large", "b"], ["product"]),
        helper.make_node("Transpose", ["product"], ["turned"]),
        helper.make_node("MatMul", ["turned", "c"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    inputs = {"x": (8, 16), "a": (16, 32), "bias": (32,), "b": (32, 16), "c": (8, 4)}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "region",
            [value(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [value("y", TensorProto.FLOAT, (16, 4)), value("z", TensorProto.FLOAT, (8, 16))],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    narrow = narrow_engine(model, {"x", "a", "b", "c", "y", "z"}, {"a", "bias", "b", "c"})
    onnx.checker.check_model(narrow, full_check=True)
    operators = [node.op_type for node in narrow.graph.node]
    assert operators == [
        *("Gemm", "Cast", "Add", "Relu"),
        *("Cast", "MatMul", "Transpose", "MatMul"),
        "Identity",
    ]
    wide = widen_engine(narrow)
    onnx.checker.check_model(wide, full_check=True)
    arrays = {n: np.random.default_rng(at).standard_normal(s, np.float32) for at, (n, s) in enumerate(inputs.items())}
    expected, got = (list(ReferenceEvaluator(each).run(None, arrays)) for each in (model, wide))
    np.testing.assert_array_equal(np.asarray(expected[0]), np.asarray(got[0]))
