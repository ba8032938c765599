"""OpenVINO for Intel processors, GPUs and NPUs: an IR of each engine, which the device's plugin compiles whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as of the package: nothing is told
import openvino  # noqa: E402

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "w8": "f32", "w4": "f32"}
"""In what a plugin multiplies. Weights of w8 and w4 are small in the model itself; activations stay as they are."""


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "openvino", "version": openvino.__version__}


def missing(device: str) -> str:
    """A plugin finds a device only with its driver, and that of the NPU has its compiler in the driver."""
    found = openvino.Core().available_devices
    if any(name.partition(".")[0] == device for name in found):
        return ""
    return f"OpenVINO finds no {device} here, only {', '.join(found)}: its plugin needs the device and its driver"


def build(request: dict[str, Any]) -> None:
    """Converts, compiles for the device, and runs if asked."""
    precision = HINTS[request["precision"]]
    options = {"INFERENCE_PRECISION_HINT": precision}
    if request["device"] == "CPU":
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    core = openvino.Core()
    model = core.read_model(request["onnx"])
    if precision == "f16":  # what runs it is told by the file: its range, and which ports the host's part leaves to it
        model.set_rt_info(precision, ["twoheads", "precision"])
        model.set_rt_info(json.dumps(request["ports"]), ["twoheads", "ports"])
    compiled = core.compile_model(model, request["device"], options)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision == "f32" and found == "f16":  # sines and norms would be noise: it is prepared for neither
        raise SystemExit(f"this {request['device']} multiplies in f16 alone: build it with --precision fp16")
    target = Path(request["folder"]) / f"{request['name']}.xml"
    openvino.save_model(model, target, compress_to_fp16=precision == "f16")
    if request["outputs"]:
        if found != precision:  # not the numbers that were asked for
            raise SystemExit(
                f"this {request['device']} multiplies in {found}, not {precision}: build it without --check"
            )
        with np.load(request["inputs"]) as given:
            request_object = compiled.create_infer_request()
            request_object.infer({name: given[name] for name in given.files})
        outputs: dict[str, Any] = {}
        for port in compiled.outputs:  # one that was optimised away has the names of all values that it equals
            outputs |= dict.fromkeys(port.get_names(), request_object.get_tensor(port).data.astype(np.float32))
        np.savez(request["outputs"], **outputs)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
