"""Engines that TensorRT built, on the NVIDIA GPU of this machine; Polygraphy's runner copies to it and back."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.trt import EngineFromBytes, TrtRunner

TYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}

ctypes.CDLL("libcuda.so.1")  # without the driver nothing of this works, and the error is its name


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the ``.engine`` file beside the file ``path``, and what runs it."""
    runner = TrtRunner(EngineFromBytes(BytesFromPath(str(Path(path).with_suffix(".engine")))))
    runner.activate()
    engine = runner.engine
    ports: dict[str, list[Any]] = {"INPUT": [], "OUTPUT": []}
    for at in range(engine.num_io_tensors):
        name = engine.get_tensor_name(at)
        dtype = engine.get_tensor_dtype(name).name  # such as FLOAT or INT64
        told = name, TYPES[dtype], list(engine.get_tensor_shape(name))
        ports[engine.get_tensor_mode(name).name].append(told)
    inputs, outputs = ports["INPUT"], ports["OUTPUT"]

    def run(arrays: list[Any]) -> list[Any]:
        given = {port[0]: array.astype(port[1], copy=False) for port, array in zip(inputs, arrays, strict=True)}
        values = runner.infer(given, copy_outputs_to_host=True)
        # The runner gives the same memory at the next call.
        return [np.array(values[port[0]]) for port in outputs]

    return inputs, outputs, run
