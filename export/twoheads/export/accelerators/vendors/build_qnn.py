"""Qualcomm AI Engine Direct through ONNX Runtime's provider: a context binary for the Hexagon NPU, and its emulator."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_qnn

PROVIDER = "QNNExecutionProvider"


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "onnxruntime-qnn", "version": importlib.metadata.version("onnxruntime-qnn")}


def build(request: dict[str, Any]) -> None:
    """Compiles with any fallback to the processor forbidden, and emulates if asked."""
    if not any(device.ep_name == PROVIDER for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    context = Path(request["folder"]) / f"{request['name']}.onnx"
    session = onnxruntime.InferenceSession(request["onnx"], _options(context, request["device"]))
    if request["outputs"]:
        with np.load(request["inputs"]) as given:
            values = session.run(None, {name: given[name] for name in given.files})
        outputs = (port.name for port in session.get_outputs())
        np.savez(request["outputs"], **dict(zip(outputs, values, strict=True)))


def _options(context: Path, soc_model: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_file_path", str(context))
    options.add_session_config_entry("ep.context_embed_mode", "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    device = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER][:1]
    options.add_provider_for_devices(
        device,
        {
            "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
            "soc_model": soc_model,
            "htp_graph_finalization_optimization_mode": "3",
        },
    )
    return options


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
