"""Stand-ins for vendors' packages that run nowhere here: the packages' signatures, with ONNX Runtime behind them.

Each is called with the arguments of the real one, by its own Python signature, so that a call which the package would
refuse is refused here. ``tests/runtime/backends/test_vendor_runtimes.py`` compares the signatures with packages that
are installed, and with what ``python -m tools.signatures`` recorded of rknn-toolkit-lite2 and coremltools.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]


def session(source: Any) -> Any:
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


RKNN = b"RKNN"
"""What such a file begins with."""


class RKNNLite:
    """``rknnlite.api.RKNNLite``: a ``.rknn`` file is the ONNX model itself here, behind its mark."""

    NPU_CORE_AUTO = 0

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self._content: bytes | None = None
        self._session: Any = None

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        self._content = Path(path).read_bytes().removeprefix(RKNN)
        return 0 if self._content else -1

    def init_runtime(
        self, target: Any = None, device_id: Any = None, async_mode: bool = False, core_mask: int = NPU_CORE_AUTO
    ) -> int:
        if self._content is None or target is not None:  # the NPU of this board
            return -1
        self._session = session(self._content)
        return 0

    def inference(
        self,
        inputs: list[Any],
        data_type: Any = None,
        data_format: Any = None,
        inputs_pass_through: Any = None,
        get_frame_id: bool = False,
        reuse_outputs: bool = False,
    ) -> list[Any] | None:
        names = [port.name for port in self._session.get_inputs()]
        if data_format != ["nchw"] * len(names):
            return None
        # The runtime gives what the NPU wrote, in a shape of its own.
        return [value.reshape(1, -1) for value in self._session.run(None, dict(zip(names, inputs, strict=True)))]


class MLModel:
    """``coremltools.models.MLModel``: a package holds the ONNX model here."""

    def __init__(
        self,
        model: Any,
        is_temp_package: bool = False,
        mil_program: Any = None,
        skip_model_load: bool = False,
        compute_units: Any = None,
        weights_dir: Any = None,
        function_name: Any = None,
        optimization_hints: Any = None,
    ) -> None:
        assert Path(model).suffix == ".mlpackage"
        assert compute_units == "all"
        self._session = session(str(Path(model) / "Data" / "model.onnx"))

    def get_spec(self) -> Any:
        sides = (self._session.get_inputs(), self._session.get_outputs())
        given, made = ([_feature(port) for port in ports] for ports in sides)
        return SimpleNamespace(description=SimpleNamespace(input=given, output=made))

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        names = [port.name for port in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, data), strict=True))


def _feature(port: Any) -> Any:
    return SimpleNamespace(name=port.name, type=SimpleNamespace(multiArrayType=SimpleNamespace(shape=port.shape)))


COREMLTOOLS = SimpleNamespace(models=SimpleNamespace(MLModel=MLModel), ComputeUnit=SimpleNamespace(ALL="all"))


class CudaEngine:
    """``tensorrt.ICudaEngine`` of an engine file that is the ONNX model."""

    def __init__(self, content: bytes) -> None:
        self.session = session(content)
        self._inputs, self._outputs = self.session.get_inputs(), self.session.get_outputs()
        self._ports = [*self._outputs, *self._inputs]  # in whatever order
        self.num_io_tensors = len(self._ports)

    def _port(self, name: str) -> Any:
        return next(port for port in self._ports if port.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._ports[index].name)

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
        return SimpleNamespace(name=kinds[self._port(name).type])

    def get_tensor_shape(self, name: str) -> Any:
        return tuple(self._port(name).shape)

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if self._port(name) in self._inputs else "OUTPUT")


class TrtRunner:
    """``polygraphy.backend.trt.TrtRunner``, whose results lie in memory that the next call writes again."""

    def __init__(
        self,
        engine: Any,
        name: Any = None,
        optimization_profile: Any = None,
        allocation_strategy: Any = None,
        weight_streaming_budget: Any = None,
        weight_streaming_percent: Any = None,
        debug_listener: Any = None,
    ) -> None:
        self._load, self._kept = engine, dict[str, Any]()
        self.engine: Any = None

    def activate(self) -> None:
        self.engine = self._load()

    def infer(self, feed_dict: dict[str, Any], check_inputs: bool = True, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert kwargs == {"copy_outputs_to_host": True}
        names = [port.name for port in self.engine.session.get_outputs()]
        for name, value in zip(names, self.engine.session.run(None, feed_dict), strict=True):
            np.copyto(self._kept.setdefault(name, np.empty_like(value)), value)
        return dict(self._kept)


class EngineFromBytes:
    """``polygraphy.backend.trt.EngineFromBytes``."""

    def __init__(
        self, serialized_engine: Any, runtime: Any = None, dla_workspace_allocation_strategy: Any = None
    ) -> None:
        self._content = serialized_engine

    def __call__(self) -> CudaEngine:
        return CudaEngine(self._content())
