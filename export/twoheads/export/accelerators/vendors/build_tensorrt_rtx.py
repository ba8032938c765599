"""TensorRT for RTX: engines for GPUs of a compute capability, built without a GPU."""

from __future__ import annotations

import os
from typing import Any

os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"

import tensorrt_rtx
from trt_engine import build_engine


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "tensorrt-rtx", "version": tensorrt_rtx.__version__}


def build(request: dict[str, Any]) -> None:
    """Builds for the compute capability that is the device's name, ``SM89``."""

    def prepare(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, request["device"]), 0)

    build_engine(request, prepare)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
