"""Backends with a device behind a colon: ONNX Runtime's other providers and OpenVINO's other devices.

None of these devices is here. ONNX Runtime and OpenVINO themselves are: every call is held against their signatures and
then made on the processor.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.errors import InputError
from twoheads.runtime import load
from twoheads.runtime.backends.onnxruntime_provider import PROVIDERS
from twoheads.runtime.backends.registry import open_backend, split_name

openvino: Any = pytest.importorskip("openvino")

TINY = Tiny(key_tile=32)


class Asked:
    """What sessions were opened with."""

    def __init__(self) -> None:
        self.providers: list[Any] = []
        self.options: list[Any] = []


@pytest.fixture
def every_provider(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """ONNX Runtime as if it had been built with all of them."""
    real: Any = onnxruntime.InferenceSession
    asked = Asked()

    class Session(real):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            bound = inspect.signature(real.__init__).bind(self, *args, **options).arguments
            provider, last = bound["providers"]
            assert last == "CPUExecutionProvider"
            assert all(isinstance(value, str) for value in provider[1].values())
            asked.providers.append(provider)
            asked.options.append(bound["sess_options"])
            super().__init__(*args, **{**options, "providers": ["CPUExecutionProvider"]})

        def get_providers(self) -> list[str]:
            return [asked.providers[-1][0], "CPUExecutionProvider"]

    names = [provider.name for provider in PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


def run(path: Path, backend: str, precision: str = "f32") -> None:
    tokens = random_tokens(TINY, 75)
    loaded = load(path, backend=backend, threads=2, precision=precision)
    assert loaded.backend == backend
    expected = reference(TINY, tokens)["hidden"]
    np.testing.assert_allclose(np.asarray(loaded.run(tokens, output="hidden").array), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("device", PROVIDERS)
def test_a_whole_run_by_a_providers_name(tmp_path: Path, every_provider: Asked, device: str) -> None:
    run(write_tiny(tmp_path / "b", TINY), f"onnxruntime:{device}")
    assert {name for name, _ in every_provider.providers} == {PROVIDERS[device].name}
    assert all(options == PROVIDERS[device].options for _, options in every_provider.providers)
    assert all(options.enable_mem_pattern != PROVIDERS[device].ordered for options in every_provider.options)


def test_the_names_are_those_that_onnx_runtime_knows() -> None:
    known = set(onnxruntime.get_all_providers())
    assert {PROVIDERS[name].name for name in ("coreml", "dml", "migraphx", "webgpu", "xnnpack")} <= known


def test_a_provider_that_is_not_built_in_is_told_with_what_has_it() -> None:
    with pytest.raises(InputError, match=r"(?s)needs DmlExecutionProvider, and the installed .*onnxruntime-directml"):
        open_backend("onnxruntime:dml")


def test_a_provider_without_a_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime warns in its log, and computes on the processor."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["WebGpuExecutionProvider"])
    loaded = load(write_tiny(tmp_path / "b", TINY), backend="onnxruntime:webgpu")
    with pytest.raises(InputError, match="WebGpuExecutionProvider can't be used here"):
        loaded.run(random_tokens(TINY, 20), output="hidden")


@pytest.fixture
def gpu_and_npu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """OpenVINO as if the machine had both; the NPU multiplies in float16 whatever one asks."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Compiled:
        def __init__(self, real: Any, precision: str) -> None:
            self.create_infer_request = real.create_infer_request
            self._precision = precision

        def get_property(self, name: str) -> Any:
            assert name == "INFERENCE_PRECISION_HINT"
            return type("Type", (), {"get_type_name": lambda _: self._precision})()

    class Core(openvino.Core):  # type: ignore[misc]
        available_devices = ("CPU", "GPU.0", "NPU")

        def compile_model(self, model: Any, device_name: str, config: dict[str, Any]) -> Any:
            asked.append((device_name, dict(config)))
            found = "f16" if device_name == "NPU" else config["INFERENCE_PRECISION_HINT"]
            return Compiled(super().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), found)

    monkeypatch.setattr(openvino, "Core", Core)
    return asked


def test_openvino_on_a_gpu_and_an_npu(tmp_path: Path, gpu_and_npu: list[tuple[str, dict[str, Any]]]) -> None:
    path = write_tiny(tmp_path / "b", TINY)
    run(path, "openvino:GPU")
    assert {entry[0] for entry in gpu_and_npu} == {"GPU"}
    assert all(config == {"INFERENCE_PRECISION_HINT": "f32"} for _, config in gpu_and_npu)
    run(path, "openvino:NPU", "f16")
    with pytest.raises(InputError, match=r"is f32, and this NPU multiplies in f16"):
        run(path, "openvino:NPU")


def test_openvino_without_the_device_says_what_there_is() -> None:
    with pytest.raises(InputError, match="OpenVINO finds no NPU here, only CPU"):
        open_backend("openvino:NPU")
    assert open_backend("openvino:CPU").name == "openvino:CPU"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("abacus", "'abacus' is unknown"),
        ("onnxruntime:abacus", "use one of: onnxruntime, onnxruntime:coreml"),
        ("litert:GPU", "litert takes no device, and 'GPU' is named"),
        ("openvino:", "'openvino:' is unknown"),
    ],
)
def test_names_that_are_none(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        split_name(name)


def test_precisions_belong_to_devices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is f16, which openvino does not have.*\n.*tensorrt"):
        open_backend("openvino", precision="f16")
    with pytest.raises(InputError, match="can't be kept with openvino:CPU"):
        load(write_tiny(tmp_path / "b", TINY), backend="openvino:CPU", memory_limit=1 << 30)
