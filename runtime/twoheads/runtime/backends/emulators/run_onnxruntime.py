"""Engines with int8 products (QDQ) on ONNX Runtime: numbers are rounded as the file says, and multiplied in float32."""

from __future__ import annotations

from typing import Any

import onnxruntime


def open_artifact(path: str, _device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the file ``path``, and what runs it on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # By its documentation its kernels for whole numbers saturate at 16 bits in processors without VNNI instructions.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
    names = [port[0] for port in inputs]

    def run(arrays: list[Any]) -> list[Any]:
        values: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return values

    return inputs, outputs, run


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, "float32", list(port.shape)) for port in ports]
