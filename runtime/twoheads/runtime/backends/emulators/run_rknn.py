"""Models for Rockchip's NPU in the toolkit's simulator. It takes no ``.rknn`` file, only what that was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from rknn.api import RKNN
from rknn_calls import checked, runs


def open_artifact(path: str, device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model beside the file ``path``, and what simulates it on the NPU of ``device``."""
    source = Path(path).with_suffix(".onnx")
    if not source.exists():
        raise ValueError("the simulator needs the model itself: build again with --check, which keeps it")
    # ONNX Runtime, which the toolkit brings along, only reads the ports.
    model = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    compiler = RKNN(verbose=False)
    checked("config", compiler.config(target_platform=device, float_dtype="float16"))
    checked("load_onnx", compiler.load_onnx(model=str(source)))
    checked("build", compiler.build(do_quantization=False))
    checked("init_runtime", compiler.init_runtime())
    inputs, outputs = _ports(model.get_inputs()), _ports(model.get_outputs())
    return inputs, outputs, runs(compiler, outputs)


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, "float32", list(port.shape)) for port in ports]
