"""Models for Rockchip's NPU in the toolkit's simulator. It takes no ``.rknn`` file, only what that was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from rknn.api import RKNN


def open_artifact(path: str, device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model beside the file ``path``, and what simulates it on the NPU of ``device``."""
    source = Path(path).with_suffix(".onnx")
    if not source.exists():
        raise ValueError("the simulator needs the model itself: build again with --check, which keeps it")
    # ONNX Runtime, which the toolkit brings along, only reads the ports.
    model = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    compiler = RKNN(verbose=False)
    _checked("config", compiler.config(target_platform=device, float_dtype="float16"))
    _checked("load_onnx", compiler.load_onnx(model=str(source)))
    _checked("build", compiler.build(do_quantization=False))
    _checked("init_runtime", compiler.init_runtime())
    inputs, outputs = _ports(model.get_inputs()), _ports(model.get_outputs())
    shapes = [port[2] for port in outputs]

    def run(arrays: list[Any]) -> list[Any]:
        values = compiler.inference(inputs=arrays, data_format=["nchw"] * len(arrays))
        if values is None:
            raise ValueError("inference failed")
        return [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]

    return inputs, outputs, run


def _checked(step: str, code: int) -> None:
    if code != 0:
        raise ValueError(f"{step} failed with {code}")


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, "float32", list(port.shape)) for port in ports]
