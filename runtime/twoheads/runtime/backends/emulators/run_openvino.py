"""IR files of engines on OpenVINO, on the device for which they were built: CPU, GPU or NPU.

Ports are numbered: an output that was optimised away has the names of all values that it equals.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as of the package: nothing is told
import openvino  # noqa: E402

CORE = openvino.Core()


def open_artifact(path: str, device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model whose ``.xml`` or ``.bin`` is ``path``, and what runs it on ``device``, in float32."""
    device, found = device or "CPU", CORE.available_devices
    if not any(name.partition(".")[0] == device for name in found):
        raise ValueError(f"OpenVINO finds no {device} here, only {', '.join(found)}")
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if device == "CPU":  # the runtime's threads call it side by side
        options |= {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"  # small weights leave activations as they are
    compiled = CORE.compile_model(CORE.read_model(Path(path).with_suffix(".xml")), device, options)
    request = compiled.create_infer_request()
    inputs, outputs = _ports(compiled.inputs), _ports(compiled.outputs)

    def run(arrays: list[Any]) -> list[Any]:
        request.infer(dict(enumerate(arrays)))
        return [np.array(request.get_tensor(port).data) for port in compiled.outputs]

    return inputs, outputs, run


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    types = [np.dtype(port.get_element_type().to_dtype()).name for port in ports]
    return [(f"#{at}", types[at], list(port.shape)) for at, port in enumerate(ports)]
