"""Engines on another execution provider of ONNX Runtime, by name: a GPU's, a phone's, a browser engine's.

Values stay in the host's memory; the provider copies what it needs. What it does not take, ONNX Runtime's own CPU
kernels compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twoheads.graphs.errors import BundleError, InputError
from twoheads.runtime.backends.onnxruntime_cpu import (
    OnnxRuntimeBackend,
    OnnxRuntimeEngine,
    session_options,
    session_ports,
)
from twoheads.runtime.backends.protocol import EngineFile, check_ports

__all__ = ["PROVIDERS", "Provider", "ProviderBackend"]


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider.

    Attributes:
        name: ONNX Runtime's.
        package: The build of ONNX Runtime that has it, as one would get it.
        options: With which float32 stays float32, as far as the provider lets one say.
        ordered: Whether its sessions must run operators in order and plan no memory (DirectML's rule).
    """

    name: str
    package: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    ordered: bool = False


PROVIDERS: Mapping[str, Provider] = {
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "pip install onnxruntime, on macOS",
        {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"},
    ),
    "dml": Provider("DmlExecutionProvider", "pip install onnxruntime-directml, in place of onnxruntime", ordered=True),
    "migraphx": Provider(
        "MIGraphXExecutionProvider",
        "AMD's wheel onnxruntime-migraphx, in place of onnxruntime",
        {"migraphx_fp16_enable": "0"},
    ),
    "rocm": Provider("ROCMExecutionProvider", "AMD's wheel onnxruntime-rocm, in place of onnxruntime"),
    "webgpu": Provider("WebGpuExecutionProvider", "pip install onnxruntime-webgpu, in place of onnxruntime"),
    "xnnpack": Provider("XnnpackExecutionProvider", "a build of onnxruntime with --use_xnnpack"),
}
"""By the name after ``onnxruntime:``."""


class ProviderBackend(OnnxRuntimeBackend):
    """ONNX Runtime with a provider before its CPU kernels.

    Args:
        device: One of :data:`PROVIDERS`.

    Raises:
        InputError: The installed ONNX Runtime lacks it.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.name = f"onnxruntime:{device}"
        self._provider = PROVIDERS[device]
        found = self.module.get_available_providers()
        if self._provider.name not in found:
            raise InputError(
                f"backend {self.name}",
                f"needs {self._provider.name}, and the installed onnxruntime has {', '.join(found)}",
                self._provider.package,
            )

    @property
    def shares_packed(self) -> bool:
        return False

    def load_engine(self, file: EngineFile) -> OnnxRuntimeEngine:
        tensors = {name: self.tensor(array) for name, array in file.weights.items()}
        options: Any = session_options(self.module, file.threads)
        if self._provider.ordered:
            options.enable_mem_pattern = False
            options.execution_mode = self.module.ExecutionMode.ORT_SEQUENTIAL
        if tensors:
            options.add_external_initializers(list(tensors), list(tensors.values()))
        providers = [(self._provider.name, dict(self._provider.options)), "CPUExecutionProvider"]
        try:
            session = self.module.InferenceSession(str(file.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            problem = f"{self._provider.name} can't open it: {error}"
            raise BundleError(str(file.path), problem, "use --backend onnxruntime") from error
        if self._provider.name not in session.get_providers():  # it says so in its log and goes on without
            problem = f"{self._provider.name} can't be used here: it finds no device, or no driver"
            raise InputError(f"backend {self.name}", problem, "use --backend onnxruntime")
        check_ports(file, session_ports(session.get_inputs()), session_ports(session.get_outputs()))
        return OnnxRuntimeEngine(file.path, session, tuple(tensors.values()))
