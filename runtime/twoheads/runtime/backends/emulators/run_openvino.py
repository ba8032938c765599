"""IR files of engines on OpenVINO, on the device for which they were built: CPU, GPU or NPU.

Ports are numbered where the file does not say what they are called: an output that was optimised away has the names of
all values that it equals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as of the package: nothing is told
import openvino  # noqa: E402

CORE = openvino.Core()

PRECISION, PORTS = ["twoheads", "precision"], ["twoheads", "ports"]
"""Where a file that is prepared for half precision says so, and has the names of its inputs and outputs."""


def open_artifact(path: str, device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model whose ``.xml`` or ``.bin`` is ``path``, and what runs it on ``device``.

    It multiplies in float32, or in float16 where the file says so. Other numbers than that are refused.
    """
    device, here = device or "CPU", CORE.available_devices
    if not any(name.partition(".")[0] == device for name in here):
        raise ValueError(f"OpenVINO finds no {device} here, only {', '.join(here)}")
    model = CORE.read_model(Path(path).with_suffix(".xml"))
    precision = model.get_rt_info(PRECISION).value if model.has_rt_info(PRECISION) else "f32"
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if device == "CPU":  # the runtime's threads call it side by side
        options |= {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"  # small weights leave activations as they are
    compiled = CORE.compile_model(model, device, options)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != precision:
        raise ValueError(f"it is built for {precision}, and this {device} multiplies in {found}")
    request = compiled.create_infer_request()
    names = json.loads(model.get_rt_info(PORTS).value) if model.has_rt_info(PORTS) else (None, None)
    inputs, outputs = _ports(compiled.inputs, names[0]), _ports(compiled.outputs, names[1])

    def run(arrays: list[Any]) -> list[Any]:
        request.infer(dict(enumerate(arrays)))
        return [np.array(request.get_tensor(port).data) for port in compiled.outputs]

    return inputs, outputs, run


def _ports(ports: Any, names: list[str] | None) -> list[tuple[str, str, list[int]]]:
    types = [np.dtype(port.get_element_type().to_dtype()).name for port in ports]
    called = names or [f"#{at}" for at in range(len(ports))]
    return [(called[at], types[at], list(port.shape)) for at, port in enumerate(ports)]
