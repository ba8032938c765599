"""ONNX Runtime: engines with int8 products as ONNX files (QDQ), for whatever reads such.

They are run as the file says: numbers are rounded to 8 bits, and the products of the rounded numbers are float32. Left
to itself, ONNX Runtime replaces that by kernels for whole numbers, which on x86 processors without VNNI instructions
saturate sums of two products at 16 bits (by its documentation; SmolLM2's head was off by 31 % instead of 4 %).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "onnxruntime", "version": onnxruntime.__version__}


def build(request: dict[str, Any]) -> None:
    """Opens the model, which is the artifact, and runs it if asked."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(request["onnx"], options, providers=["CPUExecutionProvider"])
    if request["outputs"]:
        with np.load(request["inputs"]) as given:
            values = session.run(None, {name: given[name] for name in given.files})
        names = [port.name for port in session.get_outputs()]
        np.savez(request["outputs"], **dict(zip(names, values, strict=True)))
    shutil.copy(request["onnx"], Path(request["folder"]) / f"{request['name']}.onnx")


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to."""
    return []
