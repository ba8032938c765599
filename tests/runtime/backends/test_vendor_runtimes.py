"""Whole runs on artifacts through runtimes that are nowhere here, each by a stand-in with its package's signatures."""

from __future__ import annotations

import ctypes
import inspect
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import polygraphy.backend.trt as polygraphy_trt  # type: ignore[import-untyped]
import pytest

from tests.recorded_signatures import MEMBERS, calls_bound, installed_members, recorded, shape
from tests.runtime.backends import vendor_fakes as fakes
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.export.accelerators.target_files import made_files, write_target
from twoheads.export.engines.jobs import engine_jobs, engine_model
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.serialization.bundle_format import Artifact, TargetEntry
from twoheads.runtime import load
from twoheads.runtime.backends.emulator import EMULATORS, backend_on_device
from twoheads.runtime.backends.emulators import in_process
from twoheads.runtime.backends.registry import ARTIFACT_BACKENDS
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny(layers=2, key_tile=32)


def rknn(folder: Path, name: str, model: onnx.ModelProto) -> None:
    """As the driver of Rockchip's compiler leaves it."""
    (folder / f"{name}.rknn").write_bytes(fakes.RKNN + model.SerializeToString())
    sides = {"inputs": model.graph.input, "outputs": model.graph.output}
    ports = {
        side: [(port.name, "float32", [dim.dim_value for dim in port.type.tensor_type.shape.dim]) for port in found]
        for side, found in sides.items()
    }
    (folder / f"{name}.json").write_text(json.dumps(ports))


def coreml(folder: Path, name: str, model: onnx.ModelProto) -> None:
    data = folder / f"{name}.mlpackage" / "Data"
    data.mkdir(parents=True)
    (data / "model.onnx").write_bytes(model.SerializeToString())
    (data.parent / "Manifest.json").write_text('{"author": "com.apple.CoreML"}')


def tensorrt(folder: Path, name: str, model: onnx.ModelProto) -> None:
    (folder / f"{name}.engine").write_bytes(model.SerializeToString())
    (folder / f"{name}.timing").write_bytes(b"times")


def qnn(folder: Path, name: str, _model: onnx.ModelProto) -> None:
    (folder / f"{name}.onnx").write_bytes(b"EPContext")


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All the packages, on a machine with every device."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no environment of a vendor is kept
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    monkeypatch.setitem(sys.modules, "rknnlite", module("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", module("rknnlite.api", RKNNLite=fakes.RKNNLite))
    monkeypatch.setitem(sys.modules, "coremltools", module("coremltools", **vars(fakes.COREMLTOOLS)))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(polygraphy_trt, "TrtRunner", fakes.TrtRunner)
    monkeypatch.setattr(polygraphy_trt, "EngineFromBytes", fakes.EngineFromBytes)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)


Write = Callable[[Path, str, onnx.ModelProto], None]
TARGETS: dict[str, tuple[Write, str]] = {
    "rknn": (rknn, "rknn"),
    "coreml": (coreml, "coreml"),
    "tensorrt": (tensorrt, "tensorrt-engine"),
    "tensorrt-rtx": (tensorrt, "tensorrt-rtx"),
}


def built(tmp_path: Path, target: str, write: Write, precision: str = "fp32") -> Path:
    """A bundle with what a compiler would have made for the target."""
    bundle = read_bundle(write_tiny(tmp_path / "b", TINY))
    folder = tmp_path / "scratch" / target
    folder.mkdir(parents=True)
    artifacts: dict[str, Artifact] = {}
    for job in engine_jobs(bundle):
        write(folder, job.name, engine_model(bundle, job))
        artifacts[job.name] = Artifact("0" * 64, job.stages, made_files(folder, job.name), 0.0, (), None, None)
    write_target(bundle, target, TargetEntry("fake", "1", precision, None, artifacts), tmp_path / "scratch")
    return bundle.path


@pytest.mark.usefixtures("vendors")
@pytest.mark.parametrize("target", TARGETS)
def test_a_run_on_a_vendors_runtime_is_the_model(tmp_path: Path, target: str) -> None:
    write, backend = TARGETS[target]
    assert backend_on_device(target) == backend
    loaded = load(built(tmp_path, target, write), backend=backend, threads=2)
    for length in (16, 75):
        tokens = random_tokens(TINY, length)
        result = loaded.run(tokens, output="logits")
        expected = reference(TINY, tokens)["logits"]
        np.testing.assert_allclose(np.asarray(result.array), expected, rtol=0, atol=5e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("vendors")
def test_what_a_board_refuses_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(tmp_path, "rknn", rknn)
    monkeypatch.setattr(fakes.RKNNLite, "init_runtime", lambda _self, core_mask: -1)
    with pytest.raises(BundleError, match="its runtime fails: ValueError: init_runtime failed with -1"):
        load(path, backend="rknn", threads=1).run(random_tokens(TINY, 16), output="hidden")


@pytest.mark.usefixtures("vendors")
def test_values_beyond_half_precision_are_refused_in_artifacts_of_half_precision_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(TINY, 96)
    plain = fakes.RKNNLite.inference

    def large(self: Any, inputs: list[Any], data_format: Any) -> list[Any]:
        return [value * 1e7 for value in plain(self, inputs, data_format=data_format) or []]

    monkeypatch.setattr(fakes.RKNNLite, "inference", large)
    for precision, refused in (("fp16", True), ("fp32", False)):
        path = built(tmp_path / precision, "rknn", rknn, precision)
        loaded = load(path, backend="rknn", threads=1)
        if refused:
            with pytest.raises(BundleError, match="beyond float16's range"):
                loaded.run(tokens, output="hidden")
        else:
            loaded.run(tokens, output="hidden")


@pytest.mark.parametrize(("backend", "missing"), [("coreml", "coreml|Core ML"), ("rknn", "rknnlite"), ("qnn", "")])
def test_a_runtime_that_is_not_here_is_told_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, missing: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not missing:
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    target, write = EMULATORS[backend].target, {"coreml": coreml, "rknn": rknn, "qnn": qnn}[backend]
    with pytest.raises(InputError, match=rf"(?s)backend {backend}.*{missing}.*pip install"):
        load(built(tmp_path, target, write), backend=backend, threads=1).run(random_tokens(TINY, 16))


def test_every_artifact_backend_is_known_by_name() -> None:
    assert set(ARTIFACT_BACKENDS) == set(EMULATORS)


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_stand_ins_have_the_signatures_of_the_packages() -> None:
    for fake in (fakes.TrtRunner, fakes.EngineFromBytes):
        real = getattr(polygraphy_trt, fake.__name__)
        assert parameters(fake.__init__) == parameters(real.__init__)
    assert parameters(fakes.TrtRunner.infer) == parameters(polygraphy_trt.TrtRunner.infer)
    assert "copy_outputs_to_host" in parameters(polygraphy_trt.TrtRunner.infer_impl)
    trt = pytest.importorskip("tensorrt_rtx")
    assert set(vars(fakes.CudaEngine)) & set(dir(trt.ICudaEngine)) >= {
        *("get_tensor_name", "get_tensor_dtype", "get_tensor_shape", "get_tensor_mode"),
    }
    assert {"FLOAT", "HALF", "INT32", "INT64", "BOOL"} <= set(trt.DataType.__members__)
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)


STAND_INS = {
    "coremltools": (fakes.MLModel, ("MLModel.__init__", "MLModel.get_spec", "MLModel.predict")),
    "rknn-toolkit-lite2": (
        fakes.RKNNLite,
        tuple(f"RKNNLite.{name}" for name in ("__init__", "load_rknn", "init_runtime", "inference")),
    ),
}


@pytest.mark.parametrize("package", STAND_INS)
def test_a_stand_in_has_the_signatures_that_are_recorded_of_its_package(package: str) -> None:
    fake, members = STAND_INS[package]
    for member in members:
        own = inspect.signature(getattr(fake, member.partition(".")[2]))
        assert shape(own) == shape(recorded(package, member)), member


EMULATOR_CALLS = {
    ("run_coreml", "coremltools"): {"MLModel.__init__", "MLModel.get_spec", "MLModel.predict"},
    ("run_rknnlite", "rknn-toolkit-lite2"): {"RKNNLite.__init__", "RKNNLite.load_rknn", "RKNNLite.init_runtime"},
    ("run_rknn", "rknn-toolkit2"): {
        *("RKNN.__init__", "RKNN.config", "RKNN.load_onnx", "RKNN.build", "RKNN.init_runtime"),
    },
    ("rknn_calls", "rknn-toolkit-lite2"): {"RKNNLite.inference"},
    ("rknn_calls", "rknn-toolkit2"): {"RKNN.inference"},
}


@pytest.mark.parametrize(("module_name", "package"), EMULATOR_CALLS)
def test_every_call_of_a_package_fits_its_recorded_signature(module_name: str, package: str) -> None:
    file = Path(in_process.__file__).parent / f"{module_name}.py"
    assert calls_bound(file, package) == EMULATOR_CALLS[module_name, package]


def test_a_call_that_a_package_refuses_is_found(tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text("runtime.inference(inputs=[], data_formats=['nchw'])")
    with pytest.raises(TypeError, match="data_formats"):
        calls_bound(file, "rknn-toolkit2")


def test_the_record_is_that_of_the_packages_that_are_installed() -> None:
    for package, members in MEMBERS.items():
        assert installed_members(package) in (None, members), f"{package} changed: python -m tools.signatures"
