"""OpenVINO for Intel processors: an IR of each engine, and the CPU plugin's own account of what it executes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "openvino", "version": openvino.__version__}


def build(request: dict[str, Any]) -> None:
    """Converts, compiles for the CPU, and runs if asked."""
    precision = {"fp32": "f32", "bf16": "bf16"}[request["precision"]]
    core = openvino.Core()
    model = core.read_model(request["onnx"])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    target = Path(request["folder"]) / f"{request['name']}.xml"
    openvino.save_model(model, target, compress_to_fp16=False)
    if request["outputs"]:
        with np.load(request["inputs"]) as given:
            request_object = compiled.create_infer_request()
            request_object.infer({name: given[name] for name in given.files})
        outputs = {
            port.get_any_name(): request_object.get_tensor(port).data.astype(np.float32) for port in compiled.outputs
        }
        np.savez(request["outputs"], **outputs)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
