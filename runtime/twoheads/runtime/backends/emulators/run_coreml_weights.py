"""Engines with the weights of Core ML packages, in float32 on ONNX Runtime: what they cost, not what a Mac computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model beside the package in which ``path`` is a file, and what runs it."""
    package = next(folder for folder in Path(path).parents if folder.suffix == ".mlpackage")
    source = package.with_suffix(".onnx")
    if not source.exists():
        raise ValueError("its weights are not beside it: build again, with --calibrate, which keeps them")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
    names = [port[0] for port in inputs]

    def run(arrays: list[Any]) -> list[Any]:
        values: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return values

    return inputs, outputs, run


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, "float32", list(port.shape)) for port in ports]
