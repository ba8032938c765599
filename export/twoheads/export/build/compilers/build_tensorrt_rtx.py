"""TensorRT for RTX: engines for GPUs of the Ada generation, built without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorrt_rtx


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "tensorrt-rtx", "version": tensorrt_rtx.__version__}


def build(request: dict[str, Any]) -> None:
    """Parses and builds for compute capability 8.9."""
    logger = _Log()
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        raise ValueError("; ".join(str(parser.get_error(at)) for at in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("; ".join(logger.errors) or "the builder gave no engine")
    (Path(request["folder"]) / f"{request['name']}.engine").write_bytes(memoryview(plan))


class _Log(tensorrt_rtx.ILogger):
    def __init__(self) -> None:
        tensorrt_rtx.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= tensorrt_rtx.ILogger.ERROR:
            self.errors.append(message)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
