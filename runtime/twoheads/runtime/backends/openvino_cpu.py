"""Engines on OpenVINO: one compiled model an engine, one infer request a thread. On the CPU unless told otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.runtime.backends.protocol import EngineFile, Ports, check_ports, engine_failure

__all__ = ["OpenVinoBackend"]


class OpenVinoBackend:
    """OpenVINO. Parallelism is across blocks: on the CPU as many streams as workers, one thread each.

    Args:
        precision: ``f32``; on the CPU also ``bf16``, which rounds the inputs of products to 8 bits of mantissa; on a
            GPU or an NPU also ``f16``. OpenVINO would choose for itself; a bundle's result must not depend on that.
        threads: Calls that run at the same time.
        device: ``CPU``, ``GPU`` or ``NPU``, where OpenVINO finds one; ``None`` for the CPU.

    Raises:
        InputError: The package is not installed, it finds no such device, or that has no products in that precision.
    """

    in_place = shares_packed = False

    def __init__(self, *, precision: str, threads: int, device: str | None = None) -> None:
        self.name = "openvino" if device is None else f"openvino:{device}"
        self._device = device or "CPU"
        # OpenVINO's tools, which come with it, tell Google Analytics of every import; without this package they don't.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino  # type: ignore[import-untyped]
        except ImportError as error:
            raise InputError("backend openvino", f"can't be imported ({error})", "pip install openvino") from error
        self._openvino: Any = openvino
        self._core: Any = openvino.Core()
        found = self._core.available_devices
        if not any(name.partition(".")[0] == self._device for name in found):
            problem = f"OpenVINO finds no {self._device} here, only {', '.join(found)}"
            raise InputError(f"backend {self.name}", problem, "its plugin needs the device and its driver")
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # OpenVINO would say so in its log, and compute in float32.
            problem = "is bf16, and this processor has no products of bfloat16"
            raise InputError("precision", problem, "leave it out, which is float32")
        self._models: dict[Path, Any] = {}
        self._precision = precision
        self._config = {"INFERENCE_PRECISION_HINT": precision}
        if self._device == "CPU":
            # The threads that call are the executor's own: they are not OpenVINO's to pin.
            of_threads = {"NUM_STREAMS": str(threads), "INFERENCE_NUM_THREADS": str(threads)}
            self._config |= {**of_threads, "ENABLE_CPU_PINNING": "NO"}

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        return self._openvino.Tensor(_shareable(array), shared_memory=True)

    def load_engine(self, file: EngineFile) -> OpenVinoEngine:
        # A stream a caller, of one thread; or one stream whose kernels use several.
        on_cpu = self._device == "CPU" and file.threads > 1
        several = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(file.threads)} if on_cpu else {}
        try:
            model = self._read(file.path)
            check_ports(file, _ports(model.inputs), _ports(model.outputs))
            self._bind(file.path, model, file.weights)
            compiled = self._core.compile_model(model, self._device, self._config | several)
        except RuntimeError as error:  # what OpenVINO raises, for a file or an operator that it can't take
            problem = f"OpenVINO can't open it: {error}"
            raise BundleError(str(file.path), problem, "use --backend onnxruntime") from error
        self._check_precision(compiled)
        return OpenVinoEngine(file.path, compiled, tuple(file.weights.values()))

    def _check_precision(self, compiled: Any) -> None:
        """Raises where a device multiplies in something else than it was asked to: an NPU has no float32."""
        if self._device == "CPU":
            return
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != self._precision:
            problem = f"is {self._precision}, and this {self._device} multiplies in {found}"
            raise InputError("precision", problem, f"ask for it by name: --precision {found}")

    def _read(self, path: Path) -> Any:
        """The engine's graph, a copy of its own to bind weights in: the file is read once for all its stages."""
        if path not in self._models:
            self._models[path] = self._core.read_model(path)
        return self._models[path].clone()

    def _bind(self, path: Path, model: Any, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Lets every reader of a constant that has a weight's name read the weight's array."""
        constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
        for name, array in weights.items():
            if name not in constants:
                raise InternalError(f"engine {path.name}: OpenVINO has no constant for the weight {name!r}")
            replaced = self._openvino.op.Constant(_shareable(array), shared_memory=True)
            replaced.set_friendly_name(name)
            for reader in constants[name].output(0).get_target_inputs():
                reader.replace_source_output(replaced.output(0))


class OpenVinoEngine:
    """A compiled model, with the weights' arrays kept alive beside it."""

    def __init__(self, path: Path, compiled: Any, weights: Sequence[npt.NDArray[Any]]) -> None:
        self.path = path
        self.compiled = compiled
        self.weights = weights

    def new_call(self) -> OpenVinoCall:
        return OpenVinoCall(self.path, self.compiled.create_infer_request())


class OpenVinoCall:
    """An infer request of one thread, which computes in the thread that calls."""

    def __init__(self, path: Path, request: Any) -> None:
        self._path = path
        self._infer = request.infer
        self.bind_input = request.set_input_tensor
        self.bind_output = request.set_output_tensor

    def run(self) -> None:
        try:
            self._infer(share_inputs=True, share_outputs=True)
        except RuntimeError as error:  # what OpenVINO raises
            raise engine_failure(self._path, error) from error


@dataclass(frozen=True, slots=True)
class _Memory:
    """An array's memory, declared writable; it holds the array."""

    array: npt.NDArray[Any]
    __array_interface__: dict[str, Any]


def _shareable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory in an array that OpenVINO shares: it takes no read-only one, though it writes to outputs only."""
    if array.flags.writeable:
        return array
    interface = array.__array_interface__
    return np.asarray(_Memory(array, interface | {"data": (interface["data"][0], False)}))


def _ports(found: Sequence[Any]) -> Ports:
    return [(p.get_any_name(), p.get_element_type().to_dtype().name, tuple(p.get_shape())) for p in found]
