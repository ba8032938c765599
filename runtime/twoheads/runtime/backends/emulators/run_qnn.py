"""Context binaries for the Hexagon NPU in Qualcomm's x86 emulator of it, by ONNX Runtime's provider."""

from __future__ import annotations

from typing import Any

import onnxruntime
import onnxruntime_qnn

PROVIDER = "QNNExecutionProvider"
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}


def open_artifact(path: str, device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the file ``path``, built for the SoC model ``device``, and what runs it; nothing may fall back."""
    if not any(found.ep_name == PROVIDER for found in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    devices = [found for found in onnxruntime.get_ep_devices() if found.ep_name == PROVIDER][:1]
    options.add_provider_for_devices(devices, {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": device})
    session = onnxruntime.InferenceSession(path, options)
    inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
    names = [port[0] for port in inputs]
    return inputs, outputs, lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, DTYPES[port.type], list(port.shape)) for port in ports]
