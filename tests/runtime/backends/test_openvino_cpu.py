"""OpenVINO as a backend: the same results as ONNX Runtime's, weights shared and bound by stage, precision as asked."""

from __future__ import annotations

import sys

import numpy as np
import openvino  # type: ignore[import-untyped]
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.program.program import Pooling, TokenwiseEngine
from twoheads.runtime import Job, load
from twoheads.runtime.backends.protocol import EngineFile
from twoheads.runtime.bundle.weights import Weights

TOLERANCE = 5e-5

MODELS = {
    "causal": Tiny(),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "window sinks": Tiny(masks=("causal & (window(17, 0) | sinks(3))",), kv_heads=1),
    "learned sinks, wide tiles": Tiny(sinks=True, key_tile=32, masks=("window(11, 0)",)),
    "relative bias": Tiny(table_reach=6, masks=("full", "causal")),
    "features": Tiny(features=True, head=False),
}


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_any_length_equals_the_whole_model(tmp_path, name):
    tiny = MODELS[name]
    bundle = load(write_tiny(tmp_path / "b", tiny), backend="openvino", threads=2)
    for length in (1, 33, 80):
        tokens = random_tokens(tiny, length, length)
        result = bundle.run(tokens, output="hidden")
        assert_close(result.array, reference(tiny, tokens)["hidden"])
        report = result.report
        assert report.engine_calls - report.repeated_calls == report.formula_calls


def test_short_inputs_share_calls(tmp_path):
    path = write_tiny(tmp_path / "b", Tiny())
    inputs = [random_tokens(Tiny(), length, length) for length in (3, 5, 8, 2)]
    ours = load(path, backend="openvino").run(inputs, output="hidden")
    theirs = load(path).run(inputs, output="hidden")
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got.array, want.array)


def test_weights_are_the_mapped_file_and_not_copied(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    bundle = load(write_tiny(tmp_path / "b", Tiny()), backend="openvino")
    shared = []
    original = openvino.op.Constant

    def constant(array, **options):
        made = original(array, **options)
        shared.append((array.__array_interface__["data"][0], made.data.__array_interface__["data"][0]))
        return made

    monkeypatch.setattr(openvino.op, "Constant", constant)
    views: dict[str, np.ndarray] = {}
    monkeypatch.setattr(Weights, "view", _recording(Weights.view, views))
    bundle.run(random_tokens(Tiny(), 20, 0), output="hidden")
    addresses = {array.__array_interface__["data"][0] for array in views.values()}
    assert shared
    assert all(given == taken and given in addresses for given, taken in shared)


def _recording(view, views):
    def recorded(self, name):
        views[name] = view(self, name)
        return views[name]

    return recorded


def test_precision_is_what_was_asked_for(tmp_path):
    path = write_tiny(tmp_path / "b", Tiny())
    tokens = random_tokens(Tiny(), 40, 0)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        exact, rounded = (
            bundle.run(tokens, output="hidden").array
            for bundle in (load(path), load(path, backend="openvino", precision="bf16"))
        )
        assert exact is not None
        assert rounded is not None
        assert 1e-5 < np.abs(rounded - exact).max() / np.abs(exact).max() < 0.1
    with pytest.raises(InputError, match="which onnxruntime does not have"):
        load(path, precision="bf16")
    with pytest.raises(InputError, match="use one of: f32, bf16"):
        load(path, backend="openvino", precision="int4")


@pytest.mark.parametrize("capable", [True, False])
def test_bfloat16_that_the_processor_does_not_have_is_refused(tmp_path, monkeypatch, capable):
    kinds = ["FP32", *(["BF16"] if capable else [])]
    monkeypatch.setattr(openvino.Core, "get_property", lambda _core, _device, _name: kinds)
    path = write_tiny(tmp_path / "b", Tiny())
    if capable:
        load(path, backend="openvino", precision="bf16")
    else:
        with pytest.raises(InputError, match="no products of bfloat16\n  fix: leave it out"):
            load(path, backend="openvino", precision="bf16")


def test_a_limit_that_can_not_be_kept_is_refused(tmp_path):
    with pytest.raises(InputError, match="use onnxruntime"):
        load(write_tiny(tmp_path / "b", Tiny()), backend="openvino", memory_limit=10**9)


def test_a_job_goes_on_with_the_backend_it_began_with(tmp_path):
    path = write_tiny(tmp_path / "b", Tiny())
    tokens = random_tokens(Tiny(), 40, 0)
    with Job(tmp_path / "job") as job:
        load(path, backend="openvino").run_job(job, tokens, output="hidden")
    with Job(tmp_path / "job", resume=True) as job, pytest.raises(InputError, match="backend"):
        load(path).run_job(job, tokens, output="hidden")


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    path = write_tiny(tmp_path / "b", Tiny())
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="pip install openvino"):
        load(path, backend="openvino")


def test_an_engine_of_other_ports_is_refused(tmp_path):
    bundle = load(write_tiny(tmp_path / "b", Tiny()), backend="openvino")
    engines = bundle._engines
    engine = engines.declared(TokenwiseEngine, "last")
    with pytest.raises(BundleError, match="the program expects"):
        engines.backend.load_engine(EngineFile(bundle.path / "engines/last.onnx", engine.inputs, engine.inputs, {}))
