"""Engines on ONNX Runtime's CUDA or TensorRT kernels, fed from device memory and queued on streams of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.user_cache import needed_cache
from twoheads.runtime.backends.cuda_driver import CudaDevice, DeviceError
from twoheads.runtime.backends.device_protocol import Device, DeviceArray, Stream
from twoheads.runtime.backends.onnxruntime_cpu import session_ports
from twoheads.runtime.backends.protocol import EngineFile, check_ports

__all__ = ["CudaBackend"]

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
INSTALL = "pip install onnxruntime-gpu, in place of onnxruntime"
CACHE_VARIABLE = "TWOHEADS_TENSORRT_CACHE"


class CudaBackend:
    """ONNX Runtime on an NVIDIA GPU. Every session computes on one stream, so an engine has a session for each lane.

    An engine that holds weights has one session, on the first lane: every session has a copy of its own on the device.
    Attention engines, which make most of the calls of a long input, hold none.

    TensorRT builds an engine when it is first opened and keeps it in the folder of the environment variable
    ``TWOHEADS_TENSORRT_CACHE``, by default ``tensorrt`` among the caches of the user: by what is in
    the file and its weights, as TensorRT's own cache looks at neither.

    Args:
        name: ``cuda`` or ``tensorrt``.
        precision: ``f32``, where TensorFloat-32 is off, or with ``tensorrt`` also ``f16``.
        lanes: Streams that compute at the same time.
        device: The device; ``None`` for the first one.

    Raises:
        InputError: The package lacks the provider, or there is no driver.
    """

    in_place = shares_packed = False

    def __init__(self, name: str, *, precision: str, lanes: int, device: Device | None = None) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError as error:
            raise InputError(f"backend {name}", f"can't import onnxruntime ({error})", INSTALL) from error
        if PROVIDERS[name] not in onnxruntime.get_available_providers():
            raise InputError(
                f"backend {name}", f"needs {PROVIDERS[name]}, which the installed onnxruntime does not have", INSTALL
            )
        self.name = name
        self.device: Device = device or CudaDevice()
        self.lanes: tuple[Stream, ...] = tuple(self.device.new_stream() for _ in range(lanes))
        self._ort: Any = onnxruntime
        self._precision = precision

    def tensor(self, array: Any) -> Any:
        """Device arrays are bound as they are.

        Raises:
            InternalError: It is an array of the host.
        """
        if not isinstance(array, DeviceArray):
            raise InternalError(f"backend {self.name} takes no {type(array).__name__}")
        return array

    def load_engine(self, file: EngineFile) -> CudaEngine:
        lanes = self.lanes[:1] if file.weights else self.lanes
        sessions = [self._session(file.path, file.weights, lane) for lane in lanes]
        for session in sessions:
            check_ports(file, session_ports(session.get_inputs()), session_ports(session.get_outputs()))
        return CudaEngine(sessions, self._run_options(), file.weights)

    def _session(self, path: Path, weights: Mapping[str, npt.NDArray[Any]], lane: Stream) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Whatever a provider can't take would go to the processor, behind the streams' back.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if weights:
            tensors = [self._ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), tensors)
        try:
            return self._ort.InferenceSession(str(path), options, providers=self._providers(path, weights, lane))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BundleError(
                str(path), f"ONNX Runtime can't open it on {self.device.name}: {error}", "use --backend onnxruntime"
            ) from error

    def _providers(
        self, path: Path, weights: Mapping[str, npt.NDArray[Any]], lane: Stream
    ) -> list[tuple[str, dict[str, str]]]:
        cuda = {
            "device_id": "0",
            "user_compute_stream": str(lane),
            "use_tf32": "0",
            "do_copy_in_default_stream": "1",
        }
        providers = [(PROVIDERS["cuda"], cuda)]
        if self.name == "tensorrt":
            folder = _cache_folder(path, weights, self._precision)
            folder.mkdir(parents=True, exist_ok=True)
            half = str(int(self._precision == "f16"))
            tensorrt = {
                "device_id": "0",
                "user_compute_stream": str(lane),
                "trt_fp16_enable": half,
                "trt_layer_norm_fp32_fallback": half,  # float16 has no square of a channel beyond 256
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(folder),
            }
            providers.insert(0, (PROVIDERS["tensorrt"], tensorrt))
        return providers

    def _run_options(self) -> Any:
        options = self._ort.RunOptions()
        # The streams' events say when a call is done; the host does not wait for it.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


class CudaEngine:
    """An engine's sessions, one for every lane on which it can be called, with their weights kept alive beside them."""

    def __init__(self, sessions: Sequence[Any], options: Any, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self.sessions = sessions
        self.weights = weights
        self.options = options
        self.lanes = len(sessions)
        self.inputs = tuple(port.name for port in sessions[0].get_inputs())
        self.outputs = tuple(port.name for port in sessions[0].get_outputs())

    def new_call(self, lane: int = 0) -> CudaCall:
        return CudaCall(self, lane)


class CudaCall:
    """An I/O binding of addresses in device memory."""

    def __init__(self, engine: CudaEngine, lane: int) -> None:
        self._engine = engine
        self._session = engine.sessions[lane]
        self._binding = self._session.io_binding()

    def bind_input(self, port: int, tensor: DeviceArray) -> None:
        name = self._engine.inputs[port]
        self._binding.bind_input(name, "cuda", 0, np.dtype(tensor.dtype).type, tensor.shape, tensor.address)

    def bind_output(self, port: int, tensor: DeviceArray) -> None:
        name = self._engine.outputs[port]
        self._binding.bind_output(name, "cuda", 0, np.dtype(tensor.dtype).type, tensor.shape, tensor.address)

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._engine.options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise DeviceError("an engine", f"failed on the device: {error}", "use --backend onnxruntime") from error


def _cache_folder(path: Path, weights: Mapping[str, npt.NDArray[Any]], precision: str) -> Path:
    """Where TensorRT's engine of this file with these weights is kept."""
    digest = sha256(path.read_bytes())
    digest.update(precision.encode())
    for name, array in weights.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    told = os.environ.get(CACHE_VARIABLE)
    cache = Path(told) if told else needed_cache("the engines that TensorRT built") / "tensorrt"
    return cache / digest.hexdigest()[:32]
